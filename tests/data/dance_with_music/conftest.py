"""A synthetic raw data set of four dances and tiny encoders, made once, and the job that builds it."""

from pathlib import Path

import numpy as np
import pytest

from stagecoach.data.dance_with_music.builder import FamilyBuilder
from stagecoach.data.dance_with_music.job import DanceJob, EncoderPaths, RawOptions
from stagecoach.data.dance_with_music.segment import SegmentOptions
from stagecoach.data.dance_with_music.synthetic import render_dance, write_synthetic

FRAMES, SIZE, SEED = 60, 64, 5


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("dances") / "raw"
    write_synthetic(path, 5, FRAMES, SIZE, SIZE, SEED)
    return path


@pytest.fixture(scope="session")
def encoders(synthetic, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "encoders"
    FamilyBuilder().write_encoders(synthetic, path, 0)
    return path


@pytest.fixture(scope="session")
def dance():
    return render_dance(SEED, 0, FRAMES, SIZE, SIZE)


@pytest.fixture
def options():
    def make(**changes) -> SegmentOptions:
        return SegmentOptions(**{"height": SIZE, "width": SIZE, **changes})

    return make


@pytest.fixture
def job(encoders, options):
    """A job for a raw data set with the tiny encoders; keywords are those of ``RawOptions`` and ``SegmentOptions``."""

    def make(raw: Path, clip_resize="crop", reference_noise=0.0, **changes) -> DanceJob:
        reading = {name: changes.pop(name) for name in RawOptions.__dataclass_fields__ if name in changes}
        files = encoders / "vae", encoders / "image_encoder", encoders / "arcface.onnx"
        paths = EncoderPaths(*files, clip_resize, reference_noise)
        return DanceJob(raw, RawOptions(**reading), options(**changes), paths)

    return make


@pytest.fixture(scope="session")
def keypoints():
    """134 points as a file has them, spread over the picture."""

    def make(scale: float = 1.0, confidence: float = 0.9) -> list[list[float]]:
        xy = np.random.default_rng(0).uniform(0.1, 0.9, (134, 2)) * scale
        return [[x, y, confidence] for x, y in xy.tolist()]

    return make
