"""A small DanceWithMusic that has learned to dance, for tests and figures: the three stages on drawn dancers, and songs
and dancers that it has never seen."""

import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stagecoach import DanceWithMusicPipeline
from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.data.dance_with_music.skeleton import BODY
from stagecoach.data.dance_with_music.song import Song
from stagecoach.data.dance_with_music.synthetic import SyntheticDance, render_dance
from stagecoach.data.dance_with_music.track import read_track
from stagecoach.data.synthetic import SOUND_RATE
from stagecoach.models.common.keyed import request_generators
from stagecoach.models.dance_with_music.inputs import DanceOutput
from stagecoach.models.metrics.dance import smooth
from tests.learning.scripts import train
from tests.tiny_dance import FAMILY, TinyDance

STEPS = {"demo": {1: 300, 2: 60, 3: 60}, "demo-svd": {1: 300, 2: 100, 3: 100}}
SETTINGS = {
    "zero": 1,  # the numbers of ZeRO-3 (tests/distributed) in less time
    "ds_config": "null",
    "precision": "fp32",
    "activation_checkpointing": "none",
    "logging.wandb": "off",
    "validation_samples": 6,
    "preview_samples": 0,
}
UNSEEN = 11
"""Seed of songs and dancers; those of the shards have 3."""


@dataclass(frozen=True)
class SmallDance:
    """``lines`` are what was logged."""

    run: Path
    encoders: Path
    lines: list[dict[str, Any]]

    def pipeline(self) -> DanceWithMusicPipeline:
        parts = {"image_encoder": self.encoders / "image_encoder", "arcface": self.encoders / "arcface.onnx"}
        pipeline = DanceWithMusicPipeline.from_adapter(
            self.run / "stage3" / "adapter", vae=self.encoders / "vae", clip_resize="crop", **parts
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def dancer(self, folder: Path, number: int, seconds: float) -> Callable[..., DanceOutput]:
        """``dance(first, frames, **more)``: what the pipeline makes of a dancer and a song that it has not seen, from
        frame ``first`` of the song on. ``folder`` is for its file, of so many ``seconds``."""
        pipeline, still = self.pipeline(), unseen(number)
        song = write_song(folder / f"{still.song.name}.wav", still.song, seconds)

        def dance(first: int, frames: int, **more: Any) -> DanceOutput:
            track = read_track(song, first / FRAME_RATE, frames / FRAME_RATE)
            where = {"image_pose": photo_pose(still), "generator": request_generators(0, "dance", [0])}
            return pipeline(still.portrait, track, **where, **more)

        return dance


def speed(pose: Tensor) -> Tensor:
    """[T - 1] of the body's points of [T, 134, 3], smoothed over a frame."""
    points = pose[None, :, BODY, :2]
    return smooth(points.diff(dim=1).square().sum(-1).sqrt().mean(-1), 1.0)[0]


def train_small_dance(folder: Path, dance: TinyDance, profile: str) -> SmallDance:
    steps = STEPS[profile]
    settings = SETTINGS | {
        "model.weights.vae": dance.encoders / "vae",
        **{f"stages.{i}.{name}": count for i, count in steps.items() for name in ("steps", "validate_every")},
        **{f"stages.{i}.micro_batch": 8 for i in steps},
    }
    where = ("--family", FAMILY, "--profile", profile, "--data", dance.shards)
    return SmallDance(folder, dance.encoders, train("pipeline.py", folder, settings, *where))


def unseen(number: int) -> SyntheticDance:
    """A dancer, of whom the portrait is given, and a song."""
    return render_dance(UNSEEN, 2 * number, 2, 64, 64)


def photo_pose(dance: SyntheticDance) -> np.ndarray:
    """Where the dancer stands in the portrait, [134, 3]."""
    return np.concatenate([dance.portrait_points, np.full((len(dance.portrait_points), 1), 0.95)], 1)


def write_song(path: Path, song: Song, seconds: float) -> Path:
    """A WAV file of the song."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SOUND_RATE)
        file.writeframes((song.render(seconds) * 32767).astype("<i2").tobytes())
    return path
