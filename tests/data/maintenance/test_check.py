"""``check`` says in one sentence each what is wrong, also what hashes cannot show: a set that was sealed wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stagecoach.data.format.schema import Field, SampleSchema
from stagecoach.data.format.shards import ShardWriter, index_path, read_manifest, write_index, write_manifest
from stagecoach.data.format.tar_walk import TarWalk
from stagecoach.data.maintenance import parallel
from stagecoach.data.maintenance.check import check

ROOT = Path(__file__).parents[3]


@pytest.fixture
def shards(build, tmp_path):
    return build(tmp_path / "set", samples=8).storage.directory


def reseal(directory, schema, change, number=0):
    """Change the rows of an index and write it and the manifest again, as a faulty tool would."""
    entries = read_manifest(directory).shards
    tar = directory / entries[number]["name"]
    index = json.loads(index_path(tar).read_bytes())
    change(index["samples"])
    entries[number] |= {"samples": len(index["samples"]), "idx_sha256": write_index(tar, index)}
    write_manifest(directory, schema, entries, {}, {})


def test_nothing_is_wrong_with_a_sound_set(shards):
    assert check(shards) == []
    assert check(shards.parent) == []


def test_missing_and_unlisted_tars_are_both_named(shards):
    os.replace(shards / "shard-000001.tar", shards / "other.tar")
    problems = check(shards)
    assert len(problems) == 2
    assert any("shard-000001.tar: missing, expected" in problem for problem in problems)
    assert any("other.tar: not listed in manifest.json" in problem for problem in problems)


def test_an_index_without_a_tar_is_named(shards):
    shutil.copy(index_path(shards / "shard-000001.tar"), shards / "gone.tar.idx")
    (problem,) = check(shards)
    assert "gone.tar.idx: not listed" in problem


def test_a_split_without_a_manifest_is_named(build, tmp_path):
    for split in ("train", "val"):
        build(tmp_path / split, samples=2)
    (tmp_path / "val/manifest.json").unlink()
    (problem,) = check(tmp_path)
    assert f"{tmp_path}/val/manifest.json: no readable manifest" in problem


def test_each_bad_sample_of_a_damaged_tar_is_named(shards):
    tar = shards / "shard-000000.tar"
    rows = json.loads(index_path(tar).read_bytes())["samples"]
    data = bytearray(tar.read_bytes())
    for row in rows[:2]:
        data[row["members"]["depth.npy"][0] + 140] ^= 1
    tar.write_bytes(data)
    problems = check(shards)
    assert "shard-000000.tar: content differs from the sha256" in problems[0]
    assert [
        f"sample {row['key']!r}: crc32 of 'depth.npy'" in problem
        for row, problem in zip(rows[:2], problems[1:], strict=True)
    ] == [True, True]


def test_samples_behind_a_damaged_header_are_looked_at_too(shards):
    tar = shards / "shard-000000.tar"
    rows = json.loads(index_path(tar).read_bytes())["samples"]
    data = bytearray(tar.read_bytes())
    data[rows[0]["members"]["depth.npy"][0] - 500] ^= 1  # the walk ends here
    data[rows[1]["members"]["depth.npy"][0] + 140] ^= 1
    tar.write_bytes(data)
    first, second = check(shards)
    assert "content differs" in first
    assert "no end mark behind" in first
    assert f"sample {rows[1]['key']!r}: crc32 of 'depth.npy'" in second


def test_a_cut_tar_is_one_sentence(shards):
    tar = shards / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    (problem,) = check(shards)
    assert "shard-000000.tar: 5000 bytes, expected" in problem


def _move(rows):
    rows[0]["members"]["latent.npy"][0] += 1


def _shorten(rows):
    rows[0]["members"]["latent.npy"][1] -= 1


def _crc(rows):
    rows[0]["members"]["latent.npy"][2] ^= 1


def _swap_keys(rows):
    rows[0]["key"], rows[1]["key"] = rows[1]["key"], rows[0]["key"]


def _forget_frame(rows):
    del rows[0]["members"]["frame.jpg"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_move, "'latent.npy' of sample 'clip000' lies at"),
        (_shorten, "'latent.npy' of sample 'clip000' lies at"),
        (_crc, "sample 'clip000': crc32 of 'latent.npy'"),
        (_swap_keys, "'depth.npy' of sample 'clip001' lies at"),
        (_forget_frame, "'frame.jpg' of sample 'clip000' lies at None"),
        (lambda rows: rows.reverse(), "in another order"),
        (lambda rows: rows.pop(), "of the tar is not listed"),
        (lambda rows: rows.append(rows[0]), "1 keys come twice"),
        (lambda rows: rows.append({**rows[0], "key": "ghost"}), "'ghost' is not in the tar"),
        (lambda rows: rows[0].update(sizes=[9, 9, 9]), "sizes of sample 'clip000' are"),
        (lambda rows: rows[0].update(members={}), "is not the row of a sample"),
        (lambda rows: rows[0]["members"].update(json=["0", 1, 2]), "is not the row of a sample"),
    ],
)
def test_an_index_that_was_sealed_wrong_is_compared_with_the_headers(shards, schema, change, found):
    reseal(shards, schema, change)
    problems = check(shards)
    assert any("shard-000000.tar" in problem and found in problem for problem in problems), problems


def test_samples_of_another_schema_than_the_manifest_says_are_named(make_arrays, schema, tmp_path):
    """What two builds that were mixed would hold."""
    with ShardWriter(tmp_path, schema) as writer:
        writer.add("clip", make_arrays(0))
    less = SampleSchema("tiny", 1, (Field("latent", "f16", (2, "f", 3)),))
    write_manifest(tmp_path, less, writer.shards, {}, {})
    problem = next(problem for problem in check(tmp_path) if "sample 'clip'" in problem)
    assert "shard-000000.tar: sample 'clip': field 'latent' was written as bf16, expected f16" in problem


def test_processes_find_what_one_finds(shards, monkeypatch):
    monkeypatch.setattr(parallel, "WORTH", 0)
    index_path(shards / "shard-000002.tar").write_bytes(b"{}")
    (shards / "shard-000001.tar").unlink()
    seen = []
    problems = check(shards, 2, lambda items, title, total: (seen.append(item) or item for item in items))
    assert problems == check(shards, 1)
    assert len(problems) == 2
    assert len(seen) == len(read_manifest(shards).shards), "the bar moves once per tar"


def kill_oneself(number):
    os.kill(os.getpid(), 9)


def test_a_process_that_dies_is_an_error_and_no_hang(monkeypatch):
    with pytest.raises(ValueError, match="title: one of 2 processes was killed"):
        parallel.map_shards(
            kill_oneself, [1, 2], jobs=2, size=parallel.WORTH, title="title", track=lambda items, title, total: items
        )


def test_a_walk_gives_every_sample_and_the_hash_of_the_file(tmp_path):
    schema = SampleSchema("tiny", 1, (Field("scale", "f32", ()),))
    with ShardWriter(tmp_path, schema) as writer:
        for number in range(300):
            writer.add(f"s{number}", {"scale": np.array(number, np.float32)})
    with TarWalk(tmp_path / writer.shards[0]["name"]) as walk:
        assert sum(1 for _ in walk) == 300
        assert walk.digest() == writer.shards[0]["sha256"]


@pytest.mark.slow
def test_memory_is_bounded_for_a_tar_of_a_gigabyte(tmp_path):
    schema = SampleSchema("tiny", 1, (Field("latent", "bf16", (16, "f", 42, 74)),))
    rng = np.random.default_rng(0)
    latent = rng.integers(0, 0x7F80, (16, 21, 42, 74)).astype(np.uint16)  # 2 MB
    with ShardWriter(tmp_path, schema, max_bytes=2 * 10**9) as writer:
        for number in range(480):
            writer.add(f"s{number}", {"latent": latent})
    write_manifest(tmp_path, schema, writer.shards, {}, {})
    assert writer.shards[0]["bytes"] > 10**9
    code = (
        "import sys, resource; from pathlib import Path; from stagecoach.data.maintenance.check import check\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert check(Path(sys.argv[1])) == []\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 100e6
