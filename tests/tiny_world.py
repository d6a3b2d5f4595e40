"""FantasyWorld at the tiny size: rendered clips, tiny encoders fitted to them, shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagecoach.data.building.build import build
from stagecoach.data.building.options import BuildOptions
from stagecoach.data.fantasy_world.builder import FamilyBuilder
from stagecoach.data.fantasy_world.clip import ClipOptions
from stagecoach.data.fantasy_world.job import EncoderPaths, FantasyWorldJob
from stagecoach.data.fantasy_world.synthetic import Variety, write_synthetic
from stagecoach.data.streaming.dataset import ShardSet

FRAMES, HEIGHT, WIDTH = 9, 48, 80


@dataclass(frozen=True)
class TinyWorld:
    """``shards`` with the splits train and val, and the ``encoders`` that they were built with."""

    shards: Path
    encoders: Path

    def samples(self, schema: Any, split: str = "train") -> ShardSet:
        return ShardSet.open(self.shards / split, schema)


def make_tiny_world(
    folder: Path,
    clips: int,
    variety: Variety,
    holdout: float = 0.1,
    seed: int = 3,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> TinyWorld:
    """Clips of ``size`` (height and width) rendered, encoded and stored."""
    write_synthetic(folder / "raw", clips, FRAMES, *size, seed, variety=variety)
    encoders = folder / "encoders"
    FamilyBuilder().write_encoders(folder / "raw", encoders, seed=0)
    places = EncoderPaths(encoders / "vae", encoders / "text_encoder", encoders / "tokenizer")
    job = FantasyWorldJob(folder / "raw", ClipOptions(FRAMES, *size), places)
    build(job, folder / "shards", BuildOptions(holdout=holdout))
    return TinyWorld(folder / "shards", encoders)
