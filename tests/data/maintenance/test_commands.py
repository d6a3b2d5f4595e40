"""The commands on finished shards as they are typed, and what they print."""

import json
from collections import Counter

import numpy as np
import pytest
import webdataset as wds

from stagecoach.data.format.shards import index_path
from stagecoach.data.maintenance.inspect import BINS, histogram, inspect
from stagecoach.data.streaming.dataset import ShardSet
from tests.commands import run_shards


@pytest.fixture
def shards(build, tmp_path):
    for split, samples in (("train", 8), ("val", 2)):
        build(tmp_path / "set" / split, samples=samples)
    return tmp_path / "set"


def run(*words):
    result, code = run_shards(*words)
    json.dumps(result)  # what --json prints
    return result, code


def test_check_finds_nothing_and_then_fails_naming_the_tar(shards, capsys):
    assert run("check", shards) == ({"problems": []}, 0)
    assert "all shards are whole" in capsys.readouterr().out
    (shards / "val/shard-000000.tar").write_bytes(b"")
    result, code = run("check", shards, "--jobs", 1)
    assert code == 1
    assert len(result["problems"]) == 1
    assert "val/shard-000000.tar" in capsys.readouterr().out.replace("\n", "")


def test_repair_says_what_it_did_and_a_dry_run_does_nothing(shards, capsys):
    index = index_path(shards / "train/shard-000001.tar")
    index.unlink()
    planned, code = run("repair", shards, "--dry-run")
    assert (code, index.exists()) == (0, False)
    assert planned["train"]["action"] == "to be repaired"
    result, code = run("repair", shards)
    assert (code, result["train"]) == (0, planned["train"] | {"action": "repaired"})
    words = capsys.readouterr().out
    assert "train: repaired" in words
    assert "shard-000001.tar" in words
    assert run("check", shards) == ({"problems": []}, 0)


def test_index_takes_the_schema_of_other_shards(shards, schema, make_arrays, tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    with wds.ShardWriter(str(tmp_path / "theirs/%03d.tar"), maxcount=2, verbose=0) as writer:
        for number in range(3):
            arrays = make_arrays(number)
            writer.write(
                {
                    "__key__": f"a/{number}",
                    "json": {"n": number},
                    **{f"{name}.npy": arrays[name] for name in ("latent", "text", "depth", "scale")},
                }
            )
    result, code = run("index", tmp_path / "theirs", "--schema-from", shards)
    assert (code, result["theirs"]["samples"]) == (0, 3)
    found = ShardSet.open(tmp_path / "theirs", schema).read(2)
    np.testing.assert_array_equal(found.arrays["depth"], make_arrays(2)["depth"], strict=True)
    assert found.meta == {"n": 2}
    assert "theirs: indexed" in capsys.readouterr().out


def test_index_of_a_family_tells_its_sizes(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"--size width=3: .*latent_channels=16"):
        run("index", tmp_path, "--family", "fantasy_world", "--size", "text_dim=32", "--size", "width=3")
    with pytest.raises(ValueError, match="next to --schema-from"):
        run("index", tmp_path, "--schema-from", tmp_path, "--size", "width=3")


def test_inspect_counts_bytes_and_sizes(shards, schema, capsys):
    result, _ = run("inspect", shards)
    assert list(result) == ["train", "val"]
    split = result["train"]
    opened = ShardSet.open(shards / "train", schema)
    assert (split["samples"], split["shards"], split["fingerprint"]) == (8, len(opened.shard_sizes), opened.fingerprint)
    sizes = opened.sizes[:, schema.dims.index("L")]
    assert split["dims"]["L"] == {
        "min": 1,
        "mean": sizes.mean(),
        "max": 3,
        "bins": [[size, size, int((sizes == size).sum())] for size in (1, 2, 3)],
    }
    assert split["dims"]["F"]["bins"] == [[5, 5, 8]]
    assert split["field_bytes"]["depth"] == 8 * (128 + 5 * 4 * 6 * 2)
    assert sum(number for *_, number in split["sample_bytes"]["bins"]) == 8
    assert split["sample_bytes"]["mean"] * 8 == sum(split["field_bytes"].values())
    assert split["encoders"] == {"text": {"name": "none"}}
    words = capsys.readouterr().out
    for word in ("depth", "L: 1 to 3", "bytes per sample", "name none", "█"):
        assert word in words


def test_inspect_names_a_damaged_index(shards):
    index_path(shards / "val/shard-000000.tar").write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"val/shard-000000\.tar\.idx: content differs"):
        inspect(shards)


def test_a_histogram_counts_every_sample_once():
    rng = np.random.default_rng(0)
    values = rng.integers(3, 1000, 500).tolist()
    found = histogram(Counter(values))
    assert (found["min"], found["max"], found["mean"]) == (min(values), max(values), pytest.approx(np.mean(values)))
    assert len(found["bins"]) == BINS
    assert [number for low, high, number in found["bins"]] == [
        sum(low <= v <= high for v in values) for low, high, _ in found["bins"]
    ]
    assert sum(number for *_, number in found["bins"]) == 500
    assert histogram(Counter()) is None
