"""One number that is not finite is found wherever a sample passes: written, indexed, checked, inspected, read."""

import io
import json
import tarfile

import numpy as np
import pytest

from stagecoach.data.building.jobs import SumStatistics
from stagecoach.data.dance_with_music.schema import dance_schema
from stagecoach.data.format import schema as schema_module
from stagecoach.data.format.schema import DTYPES, NotFiniteError, SchemaError, check_finite
from stagecoach.data.format.shards import ShardWriter, write_manifest
from stagecoach.data.maintenance.check import check
from stagecoach.data.maintenance.indexing import index_folder
from stagecoach.data.maintenance.inspect import inspect
from stagecoach.data.maintenance.recompute_statistics import RecomputedStatistics
from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.data.streaming.mixture import DatasetMixture
from stagecoach.data.streaming.plan import SamplePlan
from stagecoach.data.streaming.stream import Batching, Stream

BAD = {"bf16": [0x7F80, 0xFF80, 0x7FC0, 0xFFFF], "f16": [np.nan, np.inf, -np.inf], "f32": [np.nan, np.inf, -np.inf],
       "f64": [np.nan, np.inf, -np.inf]}  # fmt: skip


@pytest.mark.parametrize("dtype", BAD)
def test_every_kind_of_not_finite_is_named_with_its_place_and_no_other_number(dtype):
    numbers = np.zeros((3, 100, 500), DTYPES[dtype])  # more than are looked at together
    if dtype == "bf16":
        numbers.reshape(-1)[:6] = 0, 0x8000, 1, 0x7F7F, 0xFF7F, 0x007F  # zeros, subnormal, largest
    else:
        limits = np.finfo(numbers.dtype)
        numbers.reshape(-1)[:6] = 0, -0.0, limits.smallest_subnormal, limits.max, limits.min, limits.tiny
    check_finite(numbers, dtype, "here")
    check_finite(numbers[:0], dtype, "here")
    check_finite(numbers.T, dtype, "here")
    check_finite(numbers.reshape(-1)[1].reshape(()), dtype, "here")
    for bad in BAD[dtype]:
        spoiled = numbers.copy()
        spoiled[2, 71, 9] = spoiled[2, 99, 499] = bad
        named = r"here holds (nan|-?inf) at \[2, 71, 9\], and 2 of its 150,000 numbers are not finite"
        with pytest.raises(NotFiniteError, match=named):
            check_finite(spoiled, dtype, "here")


@pytest.fixture
def spoiled(tmp_path, make_arrays, schema, monkeypatch):
    """Ten samples as an older version wrote them, of which one holds a nan."""
    arrays = [make_arrays(number) for number in range(10)]
    arrays[4]["depth"][3, 2, 1] = np.nan
    with pytest.raises(SchemaError, match=r"sample 'clip004': field 'depth' holds nan at \[3, 2, 1\]"):
        _write(tmp_path / "new", schema, arrays)
    with monkeypatch.context() as patch:
        patch.setattr(schema_module, "check_finite", lambda *_: None)
        _write(tmp_path / "old", schema, arrays)
    return tmp_path / "old"


def _write(folder, schema, arrays):
    with ShardWriter(folder, schema) as writer:
        for number, each in enumerate(arrays):
            writer.add(f"clip{number:03d}", each)
    write_manifest(folder, schema, writer.shards, {}, {})


def test_a_stored_sample_that_is_not_finite_is_refused_wherever_it_is_met(spoiled, schema):
    named = r"sample 'clip004': field 'depth' holds nan at \[3, 2, 1\], and 1 of its 120 numbers"
    shards = ShardSet.open(spoiled, schema)
    with pytest.raises(SchemaError, match=named):
        shards.read(4)
    (problem,) = check(spoiled)
    assert "sample 'clip004': field 'depth' holds nan" in problem
    with pytest.raises(SchemaError, match=named):
        inspect(spoiled)
    mixture = DatasetMixture([shards])
    stream = Stream(
        mixture, plan=SamplePlan(mixture.members()[0], global_batch=5, seed=1), batching=Batching(5, 5, 1), rank=0,
        start_step=0, stop_step=2,
    )  # fmt: skip
    keys = [key for _, _, batch in stream for key in batch["key"]]
    assert len(keys) == 10
    assert "clip004" not in keys
    (bad,) = stream.bad
    assert bad.key == "clip004"
    assert "holds nan at [3, 2, 1]" in bad.reason


def test_an_adopted_row_of_music_with_a_nan_is_refused_or_left_out_of_set_and_sums(tmp_path):
    sizes = {"F": 8, "h": 4, "w": 4, "R": 1}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(4):
            for spec in dance_schema().fields:
                if spec.dtype == "image":
                    continue
                shape = tuple(sizes.get(size, size) for size in spec.shape)
                array = np.full(shape, number, DTYPES[spec.dtype])
                if spec.name == "music" and number == 2:
                    array[3, 5] = np.nan
                out = io.BytesIO()
                np.save(out, array)
                info = tarfile.TarInfo(f"d{number}.{spec.name}.npy")
                info.size = out.tell()
                out.seek(0)
                tar.addfile(info, out)
    with pytest.raises(ValueError, match=r"sample 'd2': field 'music' holds nan at \[3, 5\].*--skip-bad"):
        index_folder(tmp_path, dance_schema())
    (found,) = index_folder(tmp_path, dance_schema(), skip_bad=True).values()
    assert (found["samples"], found["skipped"]) == (3, 1)
    assert json.loads((tmp_path / "skipped.jsonl").read_text())["key"] == "d2"
    statistics = json.loads((tmp_path / "manifest.json").read_text())["statistics"]
    assert statistics["music_sum"] == [8.0 * (0 + 1 + 3)] * 35
    assert check(tmp_path) == []


class Sums(SumStatistics):
    def count(self, sample):
        return {}


def test_sums_that_are_not_finite_are_no_statistics(tmp_path, schema, monkeypatch):
    with pytest.raises(ValueError, match="the sum 'depth_sum' of its samples is not finite"):
        write_manifest(tmp_path, schema, [{"name": "a"}], {}, {"count": 1, "depth_sum": [1.0, np.inf]})
    recomputed = RecomputedStatistics("dance_with_music", frozenset())
    monkeypatch.setattr(recomputed, "_statistics", Sums(frames=8, music_sum=np.array([1.0, np.nan])))
    assert recomputed.result().values is None
    assert recomputed.result().problem == "the sum 'music_sum' of its samples is not finite"


def test_inspect_gives_the_standard_deviation_of_each_channel_of_latents(tmp_path, make_arrays, schema):
    """Two channels of normal numbers of standard deviation 0.5 and 3, stored as bf16."""
    scales = np.array([0.5, 3.0], np.float32)[:, None, None]
    arrays = []
    for number in range(10):
        values = np.random.default_rng(number).standard_normal((2, 200, 3)).astype(np.float32) * scales
        arrays.append({**make_arrays(number), "latent": (values.view(np.uint32) >> 16).astype(np.uint16)})
    _write(tmp_path / "a", schema, arrays)
    (found,) = inspect(tmp_path / "a").values()
    np.testing.assert_allclose(found["latent_std"]["latent"], [0.5, 3.0], rtol=0.03)
