"""A storage that gives no answer in the middle of a tar proves nothing against a sample: it is tried again and named,
and ``repair`` leaves all as it is."""

import errno
import shutil

import pytest

from stagecoach.data.files import DamagedError
from stagecoach.data.format.index import read_index, read_row
from stagecoach.data.format.shards import read_manifest
from stagecoach.data.format.tar_walk import TarWalk
from stagecoach.data.local_files import LocalFile, UnreachableError
from stagecoach.data.maintenance.check import check
from stagecoach.data.maintenance.indexing import index_folder
from stagecoach.data.maintenance.repair import repair
from tests.data.trouble import Trouble


@pytest.fixture(scope="module")
def original(build, tmp_path_factory):
    directory = tmp_path_factory.mktemp("unreachable") / "train"
    assert len(build(directory, samples=4).shard_sizes) == 2
    return directory


@pytest.fixture
def shards(original, tmp_path):
    return shutil.copytree(original, tmp_path / "train")


def files(directory):
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def walk(path):
    with TarWalk(path) as found:
        return [(sample.key, sample.members) for sample in found], found.digest()


def first_tar(directory):
    return directory / read_manifest(directory).shards[0]["name"]


def damage(shards, kind):
    """What is to be repaired besides."""
    if kind == "index":
        next(shards.glob("*.idx")).write_bytes(b"{")
    elif kind == "tar":
        path = first_tar(shards)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif kind == "manifest":
        path = shards / "manifest.json"
        path.write_bytes(path.read_bytes().replace(b'"bytes": ', b'"bytes": 1', 1))
    elif kind == "renamed":
        first_tar(shards).rename(shards / "other.tar")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_walk_goes_on_after_a_moment_of_trouble_and_ends_with_lasting_one_wherever_it_comes(
    shards, monkeypatch, number
):
    path = first_tar(shards)
    with Trouble(monkeypatch, ".tar", number, first=10**9) as quiet:
        expected = walk(path)
    assert quiet.count > 20
    for first in range(1, quiet.count + 1):
        with Trouble(monkeypatch, ".tar", number, first, last=first + 1):
            assert walk(path) == expected
        with (
            Trouble(monkeypatch, ".tar", number, first),
            pytest.raises(UnreachableError, match="not read in 7 attempts"),
        ):
            walk(path)


def test_a_row_of_an_index_out_of_reach_is_not_damaged(shards, monkeypatch):
    entry = read_manifest(shards).shards[0]
    row = read_index(shards, entry)["samples"][0]
    with LocalFile(shards / entry["name"]) as file:
        with Trouble(monkeypatch, ".tar", errno.EIO), pytest.raises(UnreachableError):
            read_row(file, row, "here")
        with pytest.raises(DamagedError):
            read_row(file, {"key": "a", "members": {"x": [2**62, 2**36, 0]}}, "here")


def test_check_names_the_tar_and_looks_at_the_others(shards, monkeypatch):
    first, second = (shards / entry["name"] for entry in read_manifest(shards).shards)
    data = bytearray(second.read_bytes())
    data[600] ^= 1
    second.write_bytes(data)
    with Trouble(monkeypatch, first.name, errno.EIO, first=5):
        problems = check(shards)
    assert sum("not read in 7 attempts" in problem and str(first) in problem for problem in problems) == 1
    assert not any(str(first) in problem and "copy or build" in problem for problem in problems)
    assert any(str(second) in problem for problem in problems)


@pytest.mark.parametrize("ending", [".tar", ".idx", "manifest.json"])
@pytest.mark.parametrize("kind", ["none", "index", "tar", "manifest", "renamed"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_repair_drops_nothing_wherever_the_storage_gives_no_answer(
    shards, original, monkeypatch, kind, ending, dry_run
):
    damage(shards, kind)
    before, first, failed = files(shards), 1, 0
    step = 7 if ending == ".tar" else 1  # a tar takes some hundred reads
    while True:
        with Trouble(monkeypatch, ending, errno.EIO, first) as trouble:
            try:
                repair(shards, dry_run=dry_run, schema_set=original)
            except UnreachableError:
                failed += 1
        if trouble.count < first:  # it came to the end
            break
        assert files(shards) == before
        first += step
    assert failed >= 1
    if not dry_run:
        assert check(shards) == []


def test_tars_out_of_reach_are_not_indexed(shards, schema, monkeypatch):
    (shards / "manifest.json").unlink()
    for path in shards.glob("*.idx"):
        path.unlink()

    for first in range(1, 60, 5):
        with (
            Trouble(monkeypatch, ".tar", errno.EIO, first),
            pytest.raises(UnreachableError, match="not read in 7 attempts"),
        ):
            index_folder(shards, schema, skip_bad=True)
        assert not (shards / "manifest.json").exists()
    index_folder(shards, schema, skip_bad=True)
    assert check(shards) == []
