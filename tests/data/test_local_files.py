"""Reads of local files: what may pass is waited out, what does not is named, and neither is taken for damage."""

import errno
import hashlib
import os
import pickle

import pytest

from stagecoach.data import local_files
from stagecoach.data.files import check_directory, seal_directory
from stagecoach.data.local_files import DamagedError, LocalFile, MissingError, UnreachableError, is_file
from stagecoach.data.reading import read_regular
from stagecoach.data.tensors import open_tensors
from tests.data.trouble import Trouble

CONTENT = os.urandom(100_000)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENFILE])
def test_a_moment_of_trouble_is_waited_out(path, monkeypatch, number):
    with Trouble(monkeypatch, "a.bin", number, first=1, last=local_files.RETRIES), LocalFile(path) as file:
        assert file.read(10, 50) == CONTENT[10:60]
        assert file.read(60, 50) == CONTENT[60:110]
        assert file.sha256() == hashlib.sha256(CONTENT).hexdigest()


def test_a_handle_that_stays_stale_is_reopened(path, monkeypatch):
    stale = set()

    def pread(handle, size, offset, real=os.pread):
        if not stale or handle in stale:
            stale.add(handle)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(handle, size, offset)

    monkeypatch.setattr(local_files, "FIRST_DELAY", 0)
    with LocalFile(path) as file:
        keeps_the_number = os.open("/dev/null", os.O_RDONLY)
        monkeypatch.setattr(local_files.os, "pread", pread)
        real_close = os.close
        monkeypatch.setattr(local_files.os, "close", lambda handle: None)  # the new one gets another number
        assert file.read(0, 10) == CONTENT[:10]
        monkeypatch.undo()
        for handle in (*stale, keeps_the_number):
            real_close(handle)


def test_lasting_trouble_is_named_and_is_no_damage(path, monkeypatch):
    with Trouble(monkeypatch, "a.bin", errno.EIO, first=2), LocalFile(path) as file:
        assert file.read(0, 10) == CONTENT[:10]
        with pytest.raises(UnreachableError, match=r"a\.bin: not read in 7 attempts over .*Input/output error"):
            file.read(10, 10)


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_file_that_another_took_the_place_of_is_not_read_on(path, monkeypatch, change):
    with LocalFile(path) as file, Trouble(monkeypatch, "a.bin", errno.ESTALE, first=1, last=1):
        path.unlink()
        if change == "replaced":
            path.write_bytes(CONTENT)
        with pytest.raises(UnreachableError, match=r"a\.bin: replaced while it was read"):
            file.read(10, 10)


@pytest.mark.parametrize(("offset", "size"), [(0, 2**40), (99_999, 2**63), (100_000, 1), (2**70, 5), (5, 0)])
def test_no_more_is_read_than_there_is(path, offset, size):
    with LocalFile(path) as file:
        assert file.read(offset, size) == CONTENT[min(offset, 10**6) :][:size]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["missing", "pipe", "folder", "ring", "device", "name"])
def test_only_regular_files_are_opened_and_at_once(path, kind):
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "ring":
        path.symlink_to(path)
    where = {"device": "/dev/zero", "name": "a\0b"}.get(kind, path)
    with pytest.raises(DamagedError):
        LocalFile(where)
    if kind != "name":
        assert not is_file(where)


def test_errors_come_out_of_other_processes_as_they_were(tmp_path):
    with pytest.raises(MissingError) as caught:
        LocalFile(tmp_path / "a")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (MissingError, str(caught.value))


def test_sealed_folders_and_our_files_are_out_of_reach_then_and_not_damaged(tmp_path, monkeypatch):
    (tmp_path / "model.bin").write_bytes(CONTENT)
    seal_directory(tmp_path)
    for first in (1, 2):  # of the manifest, of the file
        with Trouble(monkeypatch, "", errno.EIO, first), pytest.raises(UnreachableError, match="Input/output error"):
            check_directory(tmp_path)
        with Trouble(monkeypatch, "", errno.EIO, first, last=first):
            check_directory(tmp_path)
    with Trouble(monkeypatch, "manifest.json", errno.EIO), pytest.raises(UnreachableError):
        read_regular(tmp_path / "manifest.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_what_may_not_be_read_is_out_of_reach(path):
    path.chmod(0)
    for read in (lambda: read_regular(path), lambda: open_tensors(path).__enter__()):
        with pytest.raises(UnreachableError, match=r"a\.bin: cannot be read \(Permission denied\)"):
            read()
