"""A remote folder with a node cache: samples come in ranges until the copy is there, and each failure is named."""

import errno
import hashlib
import logging
import os
import threading

import fsspec
import pytest

from stagecoach.data.files import DamagedError
from stagecoach.data.local_files import read_at
from stagecoach.data.stores import drivers
from stagecoach.data.stores.drivers import DiskError
from stagecoach.data.stores.opening import open_storage
from stagecoach.data.stores.storage import CacheOptions

SIZE = 20_000


def content(number):
    return bytes([number]) * SIZE


def digest(number):
    return hashlib.sha256(content(number)).hexdigest()


@pytest.fixture
def shards():
    fs = fsspec.filesystem("memory")
    for number in (1, 2):
        fs.pipe_file(f"/cached/{number}.tar", content(number))
    yield fs
    fs.rm("/cached", recursive=True)


def read(storage, number, offset=100, known=None):
    return storage.read_range(f"{number}.tar", offset, 50, SIZE, known or digest(number))


def test_samples_are_read_in_ranges_until_the_copy_is_there(shards, tmp_path, monkeypatch):
    storage = open_storage("memory://cached", CacheOptions(tmp_path / "cache", 3 * SIZE))
    leave, original = threading.Event(), type(storage.remote).download

    def slow(*arguments):
        assert leave.wait(10)
        original(*arguments)

    monkeypatch.setattr(type(storage.remote), "download", slow)
    assert read(storage, 1) == content(1)[:50]
    assert read(storage, 2) == content(2)[:50]  # the thread is busy: not downloaded
    assert not any(path.suffix == ".file" for path in (tmp_path / "cache").iterdir())
    leave.set()
    storage._thread.join(10)
    shards.pipe_file("/cached/1.tar", b"the source is not asked again")
    assert read(storage, 1) == content(1)[:50]
    assert len([path for path in (tmp_path / "cache").iterdir() if path.suffix == ".file"]) == 1
    with pytest.raises(DamagedError, match="10 of 50 bytes at offset 19990 of its copy"):
        read(storage, 1, SIZE - 10)


def test_damaged_copy_is_forgotten_and_read_right(shards, tmp_path):
    storage = open_storage("memory://cached", CacheOptions(tmp_path / "cache", 3 * SIZE))
    os.close(storage.fetch("1.tar", SIZE, digest(1)))
    [path] = (tmp_path / "cache").iterdir()
    path.write_bytes(content(7))
    assert read(storage, 1) == content(7)[:50]  # the crc of the sample tells the caller
    assert storage.forget("1.tar", SIZE, digest(1))
    assert read(storage, 1) == content(1)[:50]
    storage._thread.join(10)
    assert path.read_bytes() == content(1)


def test_download_that_fails_is_logged_and_spoils_nothing(shards, tmp_path, caplog):
    storage = open_storage("memory://cached", CacheOptions(tmp_path / "cache", 3 * SIZE))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert read(storage, 1, known="0" * 64) == content(1)[:50]
            storage._thread.join(10)
    assert len(caplog.messages) == 1  # it rests
    assert "memory://cached/1.tar is not cached for now" in caplog.text
    assert "differs from the sha256" in caplog.text
    storage._resting.clear()
    read(storage, 1, known="0" * 64)
    storage._thread.join(10)
    assert len(caplog.messages) == 2
    assert not storage.forget("1.tar", SIZE, "0" * 64)


def test_without_an_expected_size_nothing_is_cached(shards, tmp_path):
    storage = open_storage("memory://cached", CacheOptions(tmp_path / "cache", 3 * SIZE))
    assert storage.read_range("1.tar", 0, 50) == content(1)[:50]
    assert storage._thread is None
    assert (storage.size("1.tar"), storage.names()) == (SIZE, ["1.tar", "2.tar"])
    assert storage.read("2.tar") == content(2)


def test_disk_that_fills_up_during_a_download_is_named_as_such(shards, tmp_path, monkeypatch):
    """A write that takes a part is gone on with; the error that follows is the disk's, not the network's."""
    real, taken = os.pwrite, []

    def nearly_full(handle, data, offset):
        if taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken.append(offset)
        return real(handle, data[:7], offset)

    monkeypatch.setattr(drivers.os, "pwrite", nearly_full)
    storage = open_storage("memory://cached", CacheOptions(tmp_path / "cache", 3 * SIZE))
    with pytest.raises(DiskError, match=r"its copy on this node cannot be written \(No space left on device"):
        storage.fetch("1.tar", SIZE, digest(1))
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(drivers.os, "pwrite", lambda handle, data, offset: real(handle, data[:7], offset))
    handle = storage.fetch("1.tar", SIZE, digest(1))  # only short writes: all of them are made
    assert read_at(handle, 0, SIZE) == content(1)
    os.close(handle)
