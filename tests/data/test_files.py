"""A final name stands for complete content; what is not as its manifest says is named."""

import hashlib
import json
import os
import socket
from pathlib import Path

import pytest

from stagecoach.data.files import (
    DamagedError,
    atomic_file,
    check_directory,
    commit_directory,
    describe_files,
    list_files,
    seal_directory,
    sha256_json,
    temporary_name,
    write_json,
)


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_file_gets_its_name_when_the_block_ends(tmp_path):
    with atomic_file(tmp_path / "new" / "a.bin") as handle:
        handle.write(b"content")
        assert not (tmp_path / "new" / "a.bin").exists()
    assert names(tmp_path / "new") == ["a.bin"]
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"content"


def test_block_that_raises_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def block():
        with atomic_file(path) as handle:
            handle.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block()
    assert names(tmp_path) == ["a.bin"]
    assert path.read_bytes() == b"old"


def test_value_that_is_no_json_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert names(tmp_path) == []


def test_json_is_read_back_and_does_not_depend_on_the_order_of_keys(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": None})
    write_json(tmp_path / "b.json", {"a": None, "b": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [1, 2.5]}
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert sha256_json({"b": 1, "a": 2}) == sha256_json({"a": 2, "b": 1}) != sha256_json({"a": 2, "b": 2})


def test_temporary_names_differ_and_stay_in_the_folder(tmp_path):
    drawn = {temporary_name(tmp_path / "a") for _ in range(50)}
    assert len(drawn) == 50
    assert {p.parent for p in drawn} == {tmp_path}


@pytest.fixture
def sealed(tmp_path):
    directory = tmp_path / "work"
    (directory / "engine").mkdir(parents=True)
    (directory / "model.bin").write_bytes(b"weights")
    (directory / "engine" / "rank0.bin").write_bytes(b"state")
    seal_directory(directory)
    return directory


def test_sealed_directory_is_what_its_manifest_says(sealed):
    files = check_directory(sealed)["files"]
    assert sorted(files) == list_files(sealed) == ["engine/rank0.bin", "model.bin"]
    assert files["model.bin"] == {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}


def test_parts_described_by_several_processes_make_the_same_manifest(sealed):
    whole = (sealed / "manifest.json").read_bytes()
    parts = [describe_files(sealed, [name]) for name in list_files(sealed)]
    seal_directory(sealed, {name: entry for part in reversed(parts) for name, entry in part.items()})
    assert (sealed / "manifest.json").read_bytes() == whole


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("model.bin", None, "missing"),
        ("model.bin", b"weigh", "5 bytes, expected 7"),
        ("model.bin", b"", "0 bytes"),
        ("engine/rank0.bin", b"stato", "differs from the sha256"),
        ("manifest.json", None, "no readable manifest"),
        ("manifest.json", b"", "no readable manifest"),
        ("manifest.json", b"[]", "no readable manifest"),
        ("manifest.json", b'{"files": 3}', "no readable manifest"),
        ("manifest.json", b'{"files": {}}', "no readable manifest"),
        ("manifest.json", b'{"files": {"model.bin": []}}', "no readable manifest"),
    ],
)
def test_damage_in_a_sealed_directory_names_the_file(sealed, file, content, found):
    (sealed / file).unlink()
    if content is not None:
        (sealed / file).write_bytes(content)
    with pytest.raises(DamagedError, match=f"{file}: .*{found}"):
        check_directory(sealed)


def test_hashes_can_be_left_out_to_look_at_sizes_only(sealed):
    (sealed / "model.bin").write_bytes(b"WEIGHTS")
    check_directory(sealed, hashes=False)
    with pytest.raises(DamagedError, match=r"model\.bin"):
        check_directory(sealed)


def rewrite_manifest(directory: Path, change) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest["files"])
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_a_manifest_lists_all_files_there_are(sealed):
    rewrite_manifest(sealed, lambda files: files.pop("engine/rank0.bin"))
    with pytest.raises(DamagedError, match=r"engine/rank0.bin: not in the manifest"):
        check_directory(sealed)


@pytest.mark.parametrize("name", ["engine/extra.pt", "x", ".hidden", "deep/manifest.json"])
def test_a_file_that_no_manifest_lists_is_refused(sealed, name):
    (sealed / name).parent.mkdir(exist_ok=True)
    (sealed / name).write_bytes(b"")
    with pytest.raises(DamagedError, match=f"{name}: not in the manifest"):
        check_directory(sealed)


def test_what_nfs_keeps_of_removed_files_is_no_part_of_a_folder(sealed):
    (sealed / ".nfs00000001").write_bytes(b"")
    check_directory(sealed)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "engine/../model.bin", "./model.bin", "", ".", "a\0b"])
def test_a_name_that_leads_out_of_its_folder_is_refused(sealed, name):
    (sealed.parent / "outside").write_bytes(b"weights")
    rewrite_manifest(sealed, lambda files: files.update({name: files["model.bin"]}))
    with pytest.raises(DamagedError, match="expected names of files in this folder"):
        check_directory(sealed)


@pytest.mark.parametrize("name", ["model.bin", "engine/rank0.bin"])
def test_a_link_out_of_the_folder_is_refused_and_one_within_is_none(sealed, name):
    content = (sealed / name).read_bytes()
    (sealed.parent / "elsewhere").write_bytes(content)
    (sealed / name).unlink()
    (sealed / name).symlink_to(sealed.parent / "elsewhere")
    with pytest.raises(DamagedError, match=f"{name}: leads out of its folder"):
        check_directory(sealed)


def test_a_folder_that_is_a_link_out_is_refused(sealed):
    os.replace(sealed / "engine", sealed.parent / "engine")
    (sealed / "engine").symlink_to(sealed.parent / "engine")
    with pytest.raises(DamagedError, match=r"engine/rank0.bin: leads out of its folder"):
        check_directory(sealed)


@pytest.mark.parametrize("name", ["manifest.json", "model.bin"])
@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "ring"])
def test_what_is_no_regular_file_is_not_opened(sealed, name, kind, monkeypatch):
    (sealed / name).unlink()
    if kind == "fifo":
        os.mkfifo(sealed / name)
    elif kind == "socket":
        monkeypatch.chdir(sealed)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
    elif kind == "folder":
        (sealed / name).mkdir()
    else:
        (sealed / name).symlink_to(name)
    with pytest.raises(DamagedError, match=name):
        check_directory(sealed)


def test_commit_replaces_an_older_directory_of_that_name_whole(sealed, tmp_path):
    final = tmp_path / "checkpoint_3"
    final.mkdir()
    (final / "stale.bin").write_bytes(b"")
    commit_directory(sealed, final)
    assert names(tmp_path) == ["checkpoint_3"]
    assert names(final) == ["engine", "manifest.json", "model.bin"]
    check_directory(final)
