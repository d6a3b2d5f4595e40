"""Whatever a file of an unfinished build has become, the next start ends with the data set or with one sentence."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings

from stagecoach.data.building.build import _describe, build
from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.parts import PART, PartRecord
from stagecoach.data.building.raw_files import open_media, read_bytes, read_json
from stagecoach.data.building.workspace import BUILD, Finish
from stagecoach.data.files import seal_directory
from stagecoach.data.local_files import DamagedError, UnreachableError
from stagecoach.data.pictures import picture_size
from stagecoach.data.reading import parse_json
from tests.data.building.test_build_restart import killed_at
from tests.data.building.toy_job import OPTIONS, hashes, job, run
from tests.data.test_reading import variants
from tests.data.trouble import Trouble

PARTS = {
    "part": "part-000000",
    "split": "train",
    "job": "a",
    "samples": 3,
    "shards": [],
    "raw_files": {"k": [["a", 3, 4]]},
    "statistics": {"sum": [1.0]},
    "skipped": [{"key": "a", "reason": "b"}],
    "encoders": {"toy": {"name": "one"}},
}
JUNK = {"noise": b"\xff\0", "deep": b"[" * 50_000, "list": b"[]", "null": b"null", "text": b'"a"'}


@given(variants(PARTS))
@settings(max_examples=200, deadline=None)
def test_a_part_that_was_changed_is_of_its_shape_or_refused(content):
    try:
        part = parse_json(content, PartRecord, "part.json")
    except DamagedError:
        return
    assert type(part["part"]) is type(part["split"]) is str
    assert type(part["samples"]) is int
    assert all(type(entry["reason"]) is str for entry in part["skipped"])


@given(variants({"retire": ["train", "val"]}))
@settings(max_examples=100, deadline=None)
def test_the_names_to_retire_are_names_or_refused(content):
    with suppress(DamagedError):
        assert all(type(name) is str for name in parse_json(content, Finish, "finish.json")["retire"])


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    output = tmp_path_factory.mktemp("expected") / "shards"
    run(output)
    return hashes(output)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """By how far it has come: builds that were killed while parts were made and while the data set was put together."""
    folder, found = tmp_path_factory.mktemp("stopped"), {}
    for step in range(20, 400, 3):
        output = folder / f"at{step}" / "shards"
        output.parent.mkdir()
        if not killed_at(step, lambda output=output: run(output)):
            break
        root = output / BUILD
        if (root / "staged").is_dir():
            found.setdefault("staged", output)
        elif (root / "finish.json").is_file():
            found.setdefault("finishing", output)
        elif (root / "parts").is_dir() and any(path.name.startswith("part-") for path in (root / "parts").iterdir()):
            found.setdefault("parts", output)
        if len(found) == 3:
            break
    assert len(found) == 3
    return found


def put(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "ring":
        path.symlink_to(path.name)
    else:
        path.write_bytes(
            {"noise": b"\xff\0", "deep": b"[" * 50_000, "list": b"[]", "null": b"null", "text": b'"a"'}[kind]
        )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "folder", "ring", "noise", "deep", "list", "null", "text"])
@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("parts", "job.json"),
        ("parts", "parts/part-000000/part.json"),
        ("parts", "parts/part-000000/manifest.json"),
        ("finishing", "job.json"),
        ("finishing", "finish.json"),
        ("staged", "finish.json"),
        ("staged", "staged/build.json"),
    ],
)
def test_a_build_goes_on_or_says_which_file_is_in_its_way(stopped, expected, tmp_path, stage, name, kind):
    output = shutil.copytree(stopped[stage], tmp_path / "shards")
    put(output / BUILD / name, kind)
    said = ""
    try:
        build(job(), output, OPTIONS)
    except (ValueError, OSError) as error:
        said = str(error)
    if said:
        assert Path(name).name in said or "part-000000" in said
    else:
        assert hashes(output) == expected or name.endswith("build.json")


@pytest.mark.parametrize("retire", ["../precious", "{}/precious", "train/../../precious", ".", ""])
def test_nothing_outside_of_the_output_is_retired(stopped, tmp_path, retire):
    output = shutil.copytree(stopped["staged"], tmp_path / "shards")
    (tmp_path / "precious").write_text("mine")
    (output / BUILD / "finish.json").write_text(json.dumps({"retire": [retire.format(tmp_path)]}))
    with pytest.raises(DamagedError, match="expected names of files in this folder"):
        build(job(), output, OPTIONS)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_part_that_names_files_outside_of_it_is_made_again(stopped, expected, tmp_path):
    output = shutil.copytree(stopped["parts"], tmp_path / "shards")
    (tmp_path / "outside.tar").write_bytes(b"x")
    folder = output / BUILD / "parts" / "part-000000"
    part = json.loads((folder / PART).read_text())
    part["shards"][0]["name"] = "../../../../outside.tar"
    (folder / PART).write_text(json.dumps(part))
    seal_directory(folder)
    build(job(), output, OPTIONS)
    assert hashes(output) == expected
    assert (tmp_path / "outside.tar").read_bytes() == b"x"


def test_a_moment_of_trouble_makes_no_part_again_and_a_lasting_one_discards_none(stopped, tmp_path, monkeypatch):
    output = shutil.copytree(stopped["parts"], tmp_path / "shards")
    part = output / BUILD / "parts" / "part-000000"
    before = hashes(part)
    with Trouble(monkeypatch, PART, 5), pytest.raises(UnreachableError, match=r"part\.json: not read in 7 attempts"):
        build(job(), output, OPTIONS)
    assert hashes(part) == before
    with Trouble(monkeypatch, PART, 5, first=1, last=3):
        build(job(), output, OPTIONS)


@pytest.mark.parametrize("line", [b"[]", b'{"key": "a"}', b"{", b'{"key": 3, "reason": "x"}'])
def test_a_damaged_list_of_what_was_left_out_is_named(tmp_path, line):
    output = tmp_path / "shards"
    run(output)
    number = len((output / "skipped.jsonl").read_bytes().splitlines()) + 1
    with open(output / "skipped.jsonl", "ab") as handle:
        handle.write(line + b"\n")
    with pytest.raises(DamagedError, match=rf"skipped\.jsonl:{number}: not the JSON expected there"):
        _describe(job(), output)


@pytest.mark.timeout(20)
def test_raw_files_are_regular_and_an_outage_is_no_bad_item(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    os.mkfifo(path)
    with pytest.raises(RawError, match=r"a\.json: not readable \(no regular file"):
        read_bytes(path, "numbers")
    with pytest.raises(RawError, match=r"a\.json: no regular file"), open_media(path, str):
        pass
    with pytest.raises(RawError, match=r"a\.json: no regular file"):
        picture_size(path)
    path.unlink()
    path.write_bytes(b"[" * 50_000)
    with pytest.raises(RawError, match="no valid JSON"):
        read_json(path, "a list")
    with Trouble(monkeypatch, "a.json", 5), pytest.raises(UnreachableError):
        read_json(path, "a list")
    with pytest.raises(RawError, match=r"b\.json: not readable \(No such file"):
        read_json(tmp_path / "b.json", "a list")
