"""What is proven is kept, what is not is dropped and listed, and a repair that was killed is finished by the next."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from stagecoach.data.files import DamagedError
from stagecoach.data.format.schema import SampleSchema
from stagecoach.data.format.shards import ShardWriter, index_path, read_manifest, write_index, write_manifest
from stagecoach.data.maintenance import rebuild
from stagecoach.data.maintenance.check import check
from stagecoach.data.maintenance.repair import repair
from stagecoach.data.streaming.dataset import ShardSet
from tests.data.maintenance.damages import DAMAGES

SAMPLES = 8
LOSSLESS = (
    "index",
    "manifest",
    "tar: swapped",
    "tar and index",
    "tar: bit flipped in header",
    "tar: bit flipped in padding",
    "tar: bit flipped in end_mark",
    "tar: bit flipped in record",
    "tar: grown",
)
"""Classes of damage of which a sample need not be lost."""
ACTIONS = (("repaired", "to be repaired"), ("nothing to do", "nothing to do"))


@pytest.fixture(scope="module")
def original(build, tmp_path_factory) -> Path:
    """A set with two splits that lies there untouched."""
    base = tmp_path_factory.mktemp("repair")
    for split in ("train", "val"):
        build(base / split, samples=SAMPLES)
    return base


@pytest.fixture
def shards(original, tmp_path) -> Path:
    return shutil.copytree(original, tmp_path / "set")


def contents(directory, schema) -> dict:
    found = ShardSet.open(directory, schema)
    samples = (found.read(index) for index in range(len(found)))
    return {s.key: ({name: array.tobytes() for name, array in s.arrays.items()}, s.meta) for s in samples}


def files(directory) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def dropped(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "dropped.jsonl").read_text().splitlines()]


def place_of(tar, key, member) -> int:
    row = next(row for row in json.loads(index_path(tar).read_bytes())["samples"] if row["key"] == key)
    return row["members"][member][0]


@pytest.mark.parametrize(
    "repeats", [range(1), pytest.param(range(1, 6), marks=pytest.mark.slow)], ids=["quick", "many"]
)
def test_any_damage_is_repaired_and_no_sample_changes(original, schema, tmp_path, monkeypatch, repeats):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # safety against power cuts is not what is looked at here
    truth = contents(original / "train", schema)
    for number, (name, damage) in enumerate(DAMAGES.items()):
        for repeat in repeats:
            base = shutil.copytree(original, tmp_path / f"{number}-{repeat}")
            changes = damage(np.random.default_rng([number, repeat]), files(original / "train"))
            for file, content in changes.items():
                (base / "train" / file).unlink() if content is None else (base / "train" / file).write_bytes(content)
            before = files(base)
            planned = repair(base, dry_run=True)
            assert files(base) == before, f"{name}: a dry run changes nothing"
            done = repair(base)
            assert done["train"] | {"action": None} == planned["train"] | {"action": None}, name
            assert (done["train"]["action"], planned["train"]["action"]) in ACTIONS, name
            assert check(base) == [], name
            left = contents(base / "train", schema)
            assert left.items() <= truth.items(), name
            lost = SAMPLES - len(left)
            assert lost == done["train"].get("dropped", 0) == read_manifest(base / "train").dropped, name
            assert not (lost and name.startswith(LOSSLESS)), name
            assert lost <= 3, f"{name}: at most the samples of one tar"
            assert done["val"]["action"] == "nothing to do"
            assert repair(base)["train"]["action"] == "nothing to do", name


def test_a_flipped_bit_costs_one_sample_which_is_listed(shards, schema):
    tar = shards / "train/shard-000001.tar"
    key = json.loads(index_path(tar).read_bytes())["samples"][0]["key"]
    flip(tar, place_of(tar, key, "depth.npy") + 130)
    statistics = read_manifest(shards / "train").statistics
    result = repair(shards / "train")["train"]
    assert (result["kept"], result["dropped"], result["written again"]) == (SAMPLES - 1, 1, ["shard-000001.tar"])
    (line,) = dropped(shards / "train")
    assert (line["shard"], line["key"]) == ("shard-000001.tar", key)
    assert "crc32 of 'depth.npy'" in line["reason"]
    manifest = read_manifest(shards / "train")
    assert (manifest.dropped, manifest.statistics, manifest.lost) == (1, statistics, ())
    assert key not in contents(shards / "train", schema)


def test_later_drops_are_added_to_the_list(shards):
    for number in (0, 2):
        tar = shards / f"train/shard-{number:06d}.tar"
        key = json.loads(index_path(tar).read_bytes())["samples"][0]["key"]
        flip(tar, place_of(tar, key, "scale.npy"))
        repair(shards)
    assert [line["shard"] for line in dropped(shards / "train")] == ["shard-000000.tar", "shard-000002.tar"]
    assert read_manifest(shards / "train").dropped == 2


def test_a_lost_index_is_made_again_to_the_byte(shards, original):
    index_path(shards / "train/shard-000001.tar").unlink()
    assert repair(shards)["train"]["indexed again"] == ["shard-000001.tar"]
    assert files(shards) == files(original)


def test_keys_that_rows_hold_besides_ours_are_kept(shards, schema):
    """Another version's additions to the index outlive a repair."""
    tar = shards / "train/shard-000000.tar"
    index = json.loads(index_path(tar).read_bytes())
    for row in index["samples"]:
        row["bucket"] = row["key"].upper()
    entries = read_manifest(shards / "train").shards
    entries[0]["idx_sha256"] = write_index(tar, index)
    write_manifest(shards / "train", schema, entries, {}, {})
    flip(tar, place_of(tar, index["samples"][0]["key"], "latent.npy"))
    repair(shards)
    rows = json.loads(index_path(tar).read_bytes())["samples"]
    assert [row["bucket"] for row in rows] == [row["key"].upper() for row in rows] != []


def test_a_missing_tar_leaves_the_manifest_with_its_samples_listed(shards):
    tar = shards / "train/shard-000002.tar"
    keys = [row["key"] for row in json.loads(index_path(tar).read_bytes())["samples"]]
    tar.unlink()
    result = repair(shards)["train"]
    assert result["removed"] == ["shard-000002.tar"]
    assert [(line["shard"], line["key"]) for line in dropped(shards / "train")] == [(tar.name, key) for key in keys]
    assert all("is missing" in line["reason"] for line in dropped(shards / "train"))
    assert not index_path(tar).exists()


def test_of_a_damaged_tar_without_any_crc_nothing_is_believed(shards, schema):
    """A bit flipped in numbers leaves a sample that fits its schema."""
    tar = shards / "train/shard-000001.tar"
    rows = json.loads(index_path(tar).read_bytes())["samples"]
    flip(tar, place_of(tar, rows[0]["key"], "latent.npy") + 130)
    index_path(tar).unlink()
    repair(shards)
    assert not {row["key"] for row in rows} & set(contents(shards / "train", schema))
    assert read_manifest(shards / "train").dropped == len(rows)


def test_a_lost_manifest_is_rebuilt_without_pretending(shards, schema, original):
    (shards / "train/manifest.json").unlink()
    result = repair(shards)["train"]
    assert result["lost"] == ["dropped", "encoders", "statistics"]
    manifest = read_manifest(shards / "train")
    assert (manifest.encoders, manifest.statistics) == ({}, {})
    assert manifest.lost == ("dropped", "encoders", "statistics")
    assert manifest.fingerprint == read_manifest(original / "train").fingerprint
    assert contents(shards / "train", schema) == contents(original / "train", schema)


def test_a_name_that_is_wrong_in_a_damaged_manifest_costs_nothing(shards, schema, original):
    path = shards / "train/manifest.json"
    path.write_text(path.read_text().replace("shard-000001.tar", "shard-000701.tar"))
    result = repair(shards)["train"]
    assert (result["kept"], result["dropped"]) == (SAMPLES, 0)
    assert contents(shards / "train", schema) == contents(original / "train", schema)


def test_what_its_checksums_prove_of_a_damaged_manifest_is_kept(shards, original):
    path = shards / "train/manifest.json"
    content = json.loads(path.read_bytes())
    content["statistics"]["depth_sum"] = 7.0
    path.write_text(json.dumps(content))
    assert repair(shards)["train"]["lost"] == ["statistics"]
    manifest, before = read_manifest(shards / "train"), read_manifest(original / "train")
    assert (manifest.encoders, manifest.shards, manifest.statistics) == (before.encoders, before.shards, {})


def test_a_schema_that_is_lost_comes_from_where_one_says(build, schema, tmp_path):
    build(tmp_path / "set", samples=3)
    build(tmp_path / "other/train", samples=1)
    (tmp_path / "set/manifest.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"set/manifest\.json: .*no proven schema.*--schema-from"):
        repair(tmp_path / "set")
    assert repair(tmp_path / "set", schema_set=tmp_path / "other")["set"]["kept"] == 3
    assert check(tmp_path / "set") == []


def test_a_schema_of_another_family_beside_it_is_not_taken(build, schema, tmp_path):
    build(tmp_path / "train", samples=2)
    build(tmp_path / "val", samples=2, schema=SampleSchema("other", 1, schema.fields))
    (tmp_path / "train/manifest.json").unlink()
    with pytest.raises(DamagedError, match="no proven schema"):
        repair(tmp_path)


def test_a_set_of_which_nothing_is_proven_is_left_as_it_is(build, tmp_path):
    build(tmp_path / "train", samples=2, max_bytes=10**6)
    (tmp_path / "train/shard-000000.tar").write_bytes(b"no tar")
    before = files(tmp_path)
    with pytest.raises(DamagedError, match="no sample is proven"):
        repair(tmp_path)
    assert files(tmp_path) == before


def test_tars_that_no_manifest_lists_are_put_aside(shards, original):
    shutil.copy(original / "val/shard-000000.tar", shards / "train/stray.tar")
    assert repair(shards)["train"]["put aside"] == ["stray.tar"]
    assert check(shards) == []
    assert (shards / "train/unlisted/stray.tar").read_bytes() == (original / "val/shard-000000.tar").read_bytes()


def test_a_renamed_tar_is_found(shards, original, schema):
    os.replace(shards / "train/shard-000001.tar", shards / "train/copy-of-1.tar")
    assert repair(shards)["train"]["found under another name"] == ["shard-000001.tar"]
    assert contents(shards / "train", schema) == contents(original / "train", schema)


def test_a_key_that_two_tars_have_is_kept_once(schema, make_arrays, tmp_path):
    entries = []
    for prefix in ("a", "b"):
        with ShardWriter(tmp_path, schema, prefix=prefix) as writer:
            writer.add("both", make_arrays(0))
            writer.add(f"only-{prefix}", make_arrays(1))
        entries += writer.shards
    write_manifest(tmp_path, schema, entries, {}, {})
    assert repair(tmp_path)[tmp_path.name]["dropped"] == 1
    assert check(tmp_path) == []
    assert sorted(contents(tmp_path, schema)) == ["both", "only-a", "only-b"]


class Killed(BaseException):
    """Not an ``Exception``, so that nothing handles it."""


def test_a_repair_that_is_killed_at_any_point_is_finished_by_the_next(original, tmp_path, monkeypatch):
    """Killed before each change of the folder in turn."""
    monkeypatch.setattr(os, "fsync", lambda _: None)

    def damaged(name):
        base = shutil.copytree(original, tmp_path / name)
        tar = base / "train/shard-000001.tar"
        flip(tar, place_of(tar, json.loads(index_path(tar).read_bytes())["samples"][0]["key"], "latent.npy"))
        (base / "train/shard-000000.tar").unlink()
        shutil.copy(original / "val/shard-000000.tar", base / "train/stray.tar")
        return base

    whole = damaged("undisturbed")
    repair(whole)
    for stop in range(100):
        base, calls = damaged(f"killed-{stop}"), 0

        def limited(function, stop=stop):
            def call(*arguments, **options):
                nonlocal calls
                calls += 1
                if calls > stop:
                    raise Killed
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink"):
                patch.setattr(os, name, limited(getattr(os, name)))
            patch.setattr(rebuild.shutil, "rmtree", limited(shutil.rmtree))
            try:
                repair(base)
            except Killed:
                killed = True
            else:
                killed = False
        repair(base)
        assert files(base) == files(whole), stop
        assert check(base) == []
        if not killed:
            break
    assert not killed
    assert stop > 5, "it was killed at several points"


def test_what_a_killed_process_left_is_removed_and_a_living_one_respected(shards):
    gone = shards / f"train/.tmp-.repair.{os.uname().nodename}.999999999.0123abcd"
    gone.mkdir()
    index_path(shards / "train/shard-000001.tar").unlink()
    repair(shards)
    assert not gone.exists()
    index_path(shards / "train/shard-000001.tar").unlink()
    (shards / f"train/.tmp-.repair.{os.uname().nodename}.{os.getppid()}.0123abcd").mkdir()
    with pytest.raises(ValueError, match=f"process {os.getppid()} is repairing this folder"):
        repair(shards)


def test_check_speaks_of_an_interrupted_repair(shards):
    (shards / "train/.repair").mkdir()
    (problem,) = check(shards)
    assert "train/.repair: an interrupted repair" in problem
    repair(shards)
    assert check(shards) == []


@pytest.mark.parametrize("name", ["../outside/o.tar", "{}/outside/o.tar", "..", "a/b.tar", ""])
def test_a_list_that_names_files_outside_of_its_folder_is_not_followed(shards, tmp_path, name):
    (tmp_path / "outside").mkdir()
    shutil.copy(next((shards / "train").glob("*.tar")), tmp_path / "outside" / "o.tar")
    before = files(tmp_path / "outside")
    path = shards / "train" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["name"] = name.format(tmp_path)
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        DamagedError, match=r"manifest\.json: no readable manifest of shards .*names of files in its folder"
    ):
        read_manifest(shards / "train")
    repair(shards)
    assert check(shards) == []
    assert files(tmp_path / "outside") == before
    assert sum(entry["samples"] for entry in read_manifest(shards / "train").shards) == SAMPLES


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "plan",
    [
        {"files": ["../../escaped"], "remove": [], "aside": {}},
        {"files": [], "remove": ["../../precious"], "aside": {}},
        {"files": [], "remove": [], "aside": {"../../precious": "unlisted/x"}},
        {"files": [], "remove": [], "aside": {"manifest.json": "../../escaped"}},
        {"files": [], "remove": "manifest.json", "aside": {}},
        [],
        "../../precious",
    ],
)
def test_a_plan_of_an_interrupted_repair_stays_inside_of_its_folder(shards, tmp_path, plan):
    (tmp_path / "precious").write_text("mine")
    folder = shards / "train" / rebuild.FOLDER
    folder.mkdir()
    (folder / rebuild.PLAN).write_text(json.dumps(plan))
    before = files(shards)
    with pytest.raises(DamagedError, match="expected what an interrupted repair left"):
        repair(shards)
    assert files(shards) == before
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "escaped").exists()
