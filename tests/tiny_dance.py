"""DanceWithMusic at the tiny size: drawn dancers on synthesised songs, tiny encoders fitted to them, shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stagecoach.data.building.build import build
from stagecoach.data.building.options import BuildOptions as ShardOptions
from stagecoach.data.dance_with_music.builder import FamilyBuilder
from stagecoach.data.dance_with_music.job import DanceJob, EncoderPaths, RawOptions
from stagecoach.data.dance_with_music.segment import SegmentOptions
from stagecoach.data.dance_with_music.synthetic import write_synthetic
from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.data.streaming.stream import collate
from stagecoach.data.streaming.windows import cut
from stagecoach.models.common.keyed import rng_keys
from stagecoach.models.dance_with_music.config import DanceConfig
from stagecoach.models.dance_with_music.family import DanceWithMusicFamily
from stagecoach.models.family import Batch, Progress
from stagecoach.models.trainable import freeze

FAMILY = "dance_with_music"


@dataclass(frozen=True)
class TinyDance:
    """``shards`` with the splits train and val, and the ``encoders`` that they were built with."""

    shards: Path
    encoders: Path

    def samples(self, config: DanceConfig, split: str = "train") -> ShardSet:
        return ShardSet.open(self.shards / split, DanceWithMusicFamily().schema(config))

    def batch(
        self, config: DanceConfig, stage: int, count: int = 2, step: int = 0, total: int = 10, split: str = "train"
    ) -> Batch:
        """The first samples of a split, with the windows of a step."""
        data = self.samples(config, split)
        window = DanceWithMusicFamily().window(config, stage, step, total, 0)
        samples, starts = zip(*(cut(data.schema, data.read(i), window, 0, i) for i in range(count)), strict=True)
        return collate(data.schema, samples) | {
            "window_start": torch.tensor(starts),
            "uid": torch.arange(count),
            "rng_key": rng_keys(0, stage, range(count)),
        }


def make_tiny_dance(
    folder: Path, dances: int, frames: int = 60, side: int = 64, holdout: float = 0.25, seed: int = 3
) -> TinyDance:
    """Dances of ``frames`` pictures of ``side`` x ``side`` pixels, one segment each; songs and dancers held out."""
    write_synthetic(folder / "raw", dances, frames, side, side, seed)
    encoders = folder / "encoders"
    FamilyBuilder().write_encoders(folder / "raw", encoders, 0)
    paths = EncoderPaths(encoders / "vae", encoders / "image_encoder", encoders / "arcface.onnx", "crop")
    job = DanceJob(folder / "raw", RawOptions(holdout=holdout), SegmentOptions(side, side, frames), paths)
    build(job, folder / "shards", ShardOptions(holdout=holdout))
    return TinyDance(folder / "shards", encoders)


def make_network(config: DanceConfig, stage: int, **statistics: Any) -> torch.nn.Module:
    """The network of a stage on the CPU in fp32, at its initial values, with what the stage trains requiring grad."""
    family = DanceWithMusicFamily()
    network = family.build(config, stage, "cpu", torch.float32)
    family.load_base(network, config, "cpu")
    freeze(network, family.stages(config)[stage - 1])
    if statistics:
        family.init_from_statistics(network, statistics)
    return network


def progress_at(
    step: int, total: int = 10, stage: int = 1, training: bool = True, config: DanceConfig | None = None
) -> Progress:
    """With the frozen models that a ``config`` asks for."""
    helpers = DanceWithMusicFamily().helpers(config, stage, "cpu", torch.float32) if config else {}
    return Progress(step, total, stage, 0, training, helpers)
