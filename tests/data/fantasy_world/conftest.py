"""A synthetic raw data set and tiny encoders, made once."""

import json
from pathlib import Path

import numpy as np
import pytest

from stagecoach.data.encoding.tiny_encoders import write_wan_encoders
from stagecoach.data.fantasy_world.clip import ClipOptions
from stagecoach.data.fantasy_world.job import EncoderPaths, FantasyWorldJob
from stagecoach.data.fantasy_world.raw import METADATA, read_metadata
from stagecoach.data.fantasy_world.readers import CameraTrack, IntrinsicsUnit, camera_rows, read_frames, track_of
from stagecoach.data.fantasy_world.synthetic import write_synthetic

FRAMES, HEIGHT, WIDTH = 5, 32, 48
CLIP = ClipOptions(FRAMES, HEIGHT, WIDTH)


def read_track(path: Path, unit: IntrinsicsUnit = "normalised") -> CameraTrack:
    """All cameras of a text file."""
    return track_of([row for _, row in camera_rows(path, unit)])


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "raw"
    write_synthetic(path, 4, FRAMES, HEIGHT, WIDTH, seed=3)
    return path


@pytest.fixture(scope="session")
def encoders(synthetic, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "encoders"
    clips, _ = read_metadata(synthetic)
    frames = [frame for clip in clips for frame in read_frames(clip.video, FRAMES)]
    write_wan_encoders(path, np.stack(frames), [clip.prompt for clip in clips], seed=0)
    return path


@pytest.fixture(scope="session")
def make_job(encoders):
    """The job of a raw data set with the tiny encoders; ``image`` adds the one of image-to-video backbones."""

    def make(raw: Path, image: bool = False) -> FantasyWorldJob:
        paths = EncoderPaths(
            encoders / "vae",
            encoders / "text_encoder",
            encoders / "tokenizer",
            encoders / "image_encoder" if image else None,
        )
        return FantasyWorldJob(raw, CLIP, paths)

    return make


@pytest.fixture
def edit_metadata():
    """Change the entries of a raw data set in place."""

    def edit(raw: Path, change) -> None:
        entries = json.loads((raw / METADATA).read_text())
        change(entries)
        (raw / METADATA).write_text(json.dumps(entries))

    return edit
