"""A tiny schema with one field of each kind, and sets of shards made of it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stagecoach.data.format.schema import Field, SampleSchema
from stagecoach.data.format.shards import ShardWriter, write_manifest
from stagecoach.data.streaming.dataset import ShardSet

SCHEMA = SampleSchema(
    "tiny",
    1,
    (
        Field("latent", "bf16", (2, "f", 3)),
        Field("text", "bf16", ("L", 4), pad=0),
        Field("depth", "f16", ("F", 4, 6)),
        Field("scale", "f32", ()),
        Field("frame", "image", (4, 6, 3), optional=True),
    ),
)


@pytest.fixture(scope="session")
def schema() -> SampleSchema:
    return SCHEMA


@pytest.fixture(scope="session")
def make_arrays() -> Callable[..., dict[str, np.ndarray]]:
    """Arrays of sample ``number``, a pure function of it; text has ``number % 3 + 1`` tokens."""

    def make(number: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(number)
        return {
            "latent": rng.integers(0, 0x7F80, (2, 2, 3)).astype(np.uint16),
            "text": rng.integers(1, 2**14, (number % 3 + 1, 4)).astype(np.uint16),
            "depth": rng.random((5, 4, 6)).astype(np.float16),
            "scale": np.array(number, np.float32),
            "frame": np.full((4, 6, 3), number % 256, np.uint8),
        }

    return make


@pytest.fixture(scope="session")
def build(make_arrays) -> Callable[..., ShardSet]:
    """Write ``samples`` samples below ``directory`` and open them. About three fit into a tar of the default size."""

    def build(directory: Path, samples: int = 10, max_bytes: int = 20480, schema: SampleSchema = SCHEMA) -> ShardSet:
        with ShardWriter(directory, schema, max_bytes=max_bytes) as writer:
            for number in range(samples):
                writer.add(f"clip{number:03d}", make_arrays(number), {"caption": f"scene {number}"})
        write_manifest(directory, schema, writer.shards, {"text": {"name": "none"}}, {"depth_sum": 1.5})
        return ShardSet.open(directory, schema)

    return build


@pytest.fixture
def raw(synthetic, tmp_path) -> Path:
    """A copy of the family's ``synthetic`` raw data set that a test may damage."""
    return Path(shutil.copytree(synthetic, tmp_path / "raw"))
