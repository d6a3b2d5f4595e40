"""MoviePostProduction at the tiny size: rendered pictures, tiny encoders fitted to them, shards, recipes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagecoach.data.building.build import build
from stagecoach.data.building.options import BuildOptions as ShardOptions
from stagecoach.data.figures import EVERYTHING, Variety
from stagecoach.data.movie_post_production.builder import FamilyBuilder
from stagecoach.data.movie_post_production.job import MovieJob
from stagecoach.data.movie_post_production.options import BuildOptions
from stagecoach.data.movie_post_production.synthetic import write_synthetic
from stagecoach.data.streaming.dataset import ShardSet

FAMILY = "movie_post_production"


@dataclass(frozen=True)
class TinyMovie:
    """``shards`` with the splits train and val, and the ``encoders`` that they were built with."""

    shards: Path
    encoders: Path

    @property
    def model(self) -> dict[str, Any]:
        """Where a recipe's ``model`` finds the frozen helpers."""
        return {"vae": {"base": str(self.encoders / "vae")}, "dino": {"base": str(self.encoders / "dino")}}

    def samples(self, schema: Any, split: str = "train") -> ShardSet:
        return ShardSet.open(self.shards / split, schema)


def make_tiny_movie(
    folder: Path, pictures: int, side: int = 64, holdout: float = 0.2, seed: int = 3, variety: Variety = EVERYTHING
) -> TinyMovie:
    """Pictures of ``side`` x ``side`` pixels, rendered, encoded and stored."""
    write_synthetic(folder / "raw", pictures, [(side, side)], seed, variety=variety)
    FamilyBuilder().write_encoders(folder / "raw", folder / "encoders", seed=0)
    encoders = folder / "encoders"
    options = BuildOptions(
        flux=encoders,
        clip=encoders / "image_encoder",
        dino=encoders / "dino",
        sizes=((side, side),),
        text_length=32,
        preview=side,
    )
    build(MovieJob(folder / "raw", options), folder / "shards", ShardOptions(holdout=holdout))
    return TinyMovie(folder / "shards", encoders)
