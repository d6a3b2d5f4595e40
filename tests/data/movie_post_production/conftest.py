"""A synthetic raw data set and tiny encoders, made once."""

import json
from pathlib import Path

import numpy as np
import pytest

from stagecoach.data.movie_post_production.builder import FamilyBuilder
from stagecoach.data.movie_post_production.captions import CAPTIONS
from stagecoach.data.movie_post_production.options import BuildOptions
from stagecoach.data.movie_post_production.synthetic import write_synthetic
from tests.data.movie_post_production.built import make, read_all

SIZES = ((64, 64), (64, 96))
PICTURES = 8
TEXT_LENGTH = 48


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "raw"
    write_synthetic(path, PICTURES, SIZES, seed=3)
    return path


@pytest.fixture(scope="session")
def encoders(synthetic, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "encoders"
    FamilyBuilder().write_encoders(synthetic, path, seed=0)
    return path


@pytest.fixture(scope="session")
def options(encoders):
    """Build options for the tiny encoders; keywords replace some."""

    def make(**changes) -> BuildOptions:
        given = {
            "flux": encoders,
            "clip": encoders / "image_encoder",
            "dino": encoders / "dino",
            "sizes": SIZES,
            "text_length": TEXT_LENGTH,
        }
        return BuildOptions(**{**given, **changes})

    return make


@pytest.fixture(scope="session")
def shards(synthetic, options, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("built") / "shards"
    make(synthetic, output, options())
    return output


@pytest.fixture(scope="session")
def samples(shards) -> dict:
    return read_all(shards)


@pytest.fixture
def edit():
    """Change a caption file in place."""

    def edit(raw: Path, number: int, change) -> Path:
        path = raw / CAPTIONS / f"scene_{number:05d}.json"
        entry = json.loads(path.read_text())
        change(entry)
        path.write_text(json.dumps(entry))
        return path

    return edit


@pytest.fixture(scope="session")
def crops(synthetic) -> np.ndarray:
    """The first object of each picture at the size of the tiny encoders, uint8 [8, 28, 28, 3]; 2k and 2k + 1 show the
    same one."""
    from stagecoach.data.encoding.tiny_encoders import CROP_SIZE
    from stagecoach.data.movie_post_production.captions import read_captions
    from stagecoach.data.movie_post_production.crops import cut
    from stagecoach.data.pictures import read_picture

    return np.stack(
        [cut(read_picture(p.image), p.objects[0].box, (CROP_SIZE, CROP_SIZE)) for p in read_captions(synthetic)[0]]
    )
