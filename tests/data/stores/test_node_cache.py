"""Processes that share a cache: each file downloaded once, never more bytes than allowed, whoever dies."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stagecoach.data.files import DamagedError
from stagecoach.data.local_files import UnreachableError, read_at
from stagecoach.data.stores import node_cache
from stagecoach.data.stores.drivers import DiskError
from stagecoach.data.stores.node_cache import NodeCache

SIZE = 20_000
ROOT = Path(__file__).parents[3]

CHILD = """
import os, sys, time
from stagecoach.data.stores.node_cache import NodeCache
directory, limit, log, pause, *numbers = sys.argv[1:]
cache = NodeCache(directory, int(limit))
for number in numbers:
    number = int(number)
    def download(handle):
        with open(log, "a") as file:
            file.write(f"{number} {os.getpid()}\\n")
        for _ in range(20):
            handle.write(bytes([number]) * 1000)
            time.sleep(float(pause))
    handle = cache.fetch(f"http://set/{number}.tar", 20_000, None, download, 20)
    assert os.pread(handle, 20_001, 0) == bytes([number]) * 20_000, "wrong content"
    os.close(handle)
"""


def content(number):
    return bytes([number]) * SIZE


def digest(number):
    return hashlib.sha256(content(number)).hexdigest()


def url(number):
    return f"http://set/{number}.tar"


def fetch(cache, number, data=None, wait=5.0, checked=True):
    """The file through the cache, and whether it was downloaded for that."""
    asked = []

    def download(handle):
        asked.append(number)
        handle.write(content(number) if data is None else data)

    handle = cache.fetch(url(number), SIZE, digest(number) if checked else None, download, wait)
    assert handle is not None
    try:
        return read_at(handle, 0, SIZE + 1), bool(asked)
    finally:
        os.close(handle)


def held(cache, number):
    handle = cache.open(url(number), SIZE, digest(number))
    if handle is not None:
        os.close(handle)
    return handle is not None


def bytes_in(directory):
    total = 0
    for path in directory.iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


@pytest.fixture
def start(tmp_path):
    """Start a process that fetches files one after the other."""
    children = []

    def start(cache, numbers, pause=0.0):
        command = [sys.executable, "-c", CHILD, cache.directory, cache.max_bytes, tmp_path / "log", pause, *numbers]
        children.append(subprocess.Popen([str(part) for part in command], cwd=ROOT))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()


@pytest.fixture
def downloads(tmp_path):
    """``(number, pid)`` of the downloads that the processes began."""

    def read():
        path = tmp_path / "log"
        return [tuple(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []

    return read


def wait_for(condition, seconds=10):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def cache(tmp_path):
    return NodeCache(tmp_path / "cache", 3 * SIZE)


def test_file_is_downloaded_once_and_nothing_else_stays(cache):
    assert not held(cache, 1)
    assert fetch(cache, 1) == (content(1), True)
    assert fetch(NodeCache(cache.directory, cache.max_bytes), 1) == (content(1), False)
    assert [path.suffix for path in cache.directory.iterdir()] == [".file"]


def test_place_size_and_hash_all_tell_files_apart(cache):
    fetch(cache, 1)
    for key in (
        (url(2), SIZE, digest(1)),
        (url(1), SIZE + 1, digest(1)),
        (url(1), SIZE, digest(2)),
        (url(1), SIZE, None),
    ):
        assert cache.open(*key) is None


def test_least_recently_used_goes_first(cache):
    for number in (1, 2, 3):
        fetch(cache, number)
    assert held(cache, 1)  # a use
    fetch(cache, 4)
    assert [number for number in (1, 2, 3, 4) if held(cache, number)] == [1, 3, 4]
    assert bytes_in(cache.directory) == 3 * SIZE


def test_reader_keeps_what_is_removed(cache):
    fetch(cache, 1)
    handle = cache.open(url(1), SIZE, digest(1))
    for number in (2, 3, 4):
        fetch(cache, number)
    assert not held(cache, 1)
    assert read_at(handle, 0, SIZE) == content(1)
    os.close(handle)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"x" * SIZE, "differs from the sha256"),
        (b"", "differs from the sha256"),
        (b"x" * (SIZE + 1), "20001 bytes came"),
    ],
)
def test_wrong_content_is_not_kept(cache, data, sentence):
    with pytest.raises(DamagedError, match=sentence):
        fetch(cache, 1, data)
    assert list(cache.directory.iterdir()) == []
    assert fetch(cache, 1) == (content(1), True)


def test_download_that_raises_leaves_nothing(cache):
    with pytest.raises(UnreachableError, match="gone"):
        cache.fetch(url(1), SIZE, None, lambda handle: (_ for _ in ()).throw(UnreachableError("gone")), 0)
    assert list(cache.directory.iterdir()) == []


def test_file_larger_than_the_cache_is_refused(cache):
    with pytest.raises(UnreachableError, match="expected at most the 60000"):
        cache.fetch(url(1), 3 * SIZE + 1, None, lambda handle: None, 0)


def test_damaged_copy_is_fetched_again(cache):
    fetch(cache, 1)
    [path] = cache.directory.iterdir()
    path.write_bytes(content(2))  # as long, but wrong
    assert cache.forget(url(1), SIZE, digest(1))
    assert fetch(cache, 1) == (content(1), True)
    assert cache.forget(url(1), SIZE, digest(1))  # right by its hash: another process was first
    assert fetch(cache, 1) == (content(1), False)
    [path] = cache.directory.iterdir()
    path.write_bytes(content(1)[:-1])
    assert fetch(cache, 1) == (content(1), True)  # a wrong size is seen by itself
    assert not cache.forget(url(2), SIZE, digest(2))


def test_threads_download_a_file_once(cache):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetch(cache, 1), range(8)))
    assert [data for data, _ in found] == [content(1)] * 8
    assert sum(asked for _, asked in found) == 1


def test_wait_for_another_download_is_bounded(cache):
    entered, leave = threading.Event(), threading.Event()

    def slow(handle):
        entered.set()
        assert leave.wait(10)
        handle.write(content(1))

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.fetch, url(1), SIZE, None, slow, 0)
        assert entered.wait(5)
        started = time.monotonic()
        assert cache.fetch(url(1), SIZE, None, slow, 0.2) is None
        assert 0.15 < time.monotonic() - started < 2
        leave.set()
        os.close(first.result())


def test_space_that_downloads_hold_is_not_given_twice(tmp_path):
    cache = NodeCache(tmp_path / "cache", 2 * SIZE - 1)

    def inner(handle):
        assert cache.fetch(url(2), SIZE, None, lambda other: pytest.fail("no space for it"), 0.1) is None
        assert bytes_in(cache.directory) == SIZE
        handle.write(content(1))

    os.close(cache.fetch(url(1), SIZE, None, inner, 0))
    assert fetch(cache, 2)[1]
    assert bytes_in(cache.directory) == SIZE


def test_processes_download_each_file_once(cache, start, downloads):
    children = [start(cache, [1, 2, 3], 0.005) for _ in range(3)]
    assert [child.wait(20) for child in children] == [0, 0, 0]
    assert sorted(number for number, _ in downloads()) == [1, 2, 3]


def test_processes_never_hold_more_than_allowed(cache, start):
    children = [
        start(cache, numbers, 0.002) for numbers in ([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [3, 4, 1, 6, 2, 5])
    ]
    most = 0
    while any(child.poll() is None for child in children):
        most = max(most, bytes_in(cache.directory))
    assert [child.returncode for child in children] == [0, 0, 0]
    assert 0 < most <= cache.max_bytes
    assert {path.suffix for path in cache.directory.iterdir()} == {".file"}


def test_another_process_takes_over_from_one_that_was_killed(cache, start, downloads):
    victim = start(cache, [1], 0.2)
    wait_for(downloads)
    heir = start(cache, [1])
    time.sleep(0.3)
    assert heir.poll() is None  # it waits
    assert len(downloads()) == 1
    victim.send_signal(signal.SIGKILL)
    assert heir.wait(10) == 0
    assert downloads() == [(1, victim.pid), (1, heir.pid)]
    assert [path.suffix for path in cache.directory.iterdir()] == [".file"]


def test_leftovers_of_a_killed_process_make_room(tmp_path, start, downloads):
    cache = NodeCache(tmp_path / "cache", SIZE)
    victim = start(cache, [1], 0.2)
    wait_for(downloads)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert bytes_in(cache.directory) == SIZE
    assert fetch(cache, 2) == (content(2), True)
    assert [path.suffix for path in cache.directory.iterdir()] == [".file"]


def test_cache_works_after_kills_at_any_moment(cache, start):
    for number in range(8):
        victim = start(cache, [1, 2, 3, 4, 5, 6] * 50, 0.0005)
        time.sleep(0.06 + 0.02 * number)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        assert bytes_in(cache.directory) <= cache.max_bytes
    for number in range(1, 7):
        assert fetch(cache, number, checked=False)[0] == content(number)
    assert {path.suffix for path in cache.directory.iterdir()} == {".file"}


def test_lock_whose_file_was_removed_does_not_count(tmp_path):
    path = tmp_path / "a.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()
    assert not node_cache._take(handle, path)
    path.touch()  # that of another process
    assert not node_cache._take(handle, path)
    os.close(handle)


def test_forked_child_does_not_keep_its_parents_lock(cache):
    def download(handle):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os._exit(0 if not node_cache._held else 1)
        os.close(reading)
        os.close(writing)
        assert os.waitpid(pid, 0)[1] == 0
        assert node_cache._held
        handle.write(content(1))

    os.close(cache.fetch(url(1), SIZE, None, download, 0))


def test_disk_that_is_full_is_named_before_anything_is_downloaded(cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(node_cache.os, "posix_fallocate", full)
    with pytest.raises(DiskError, match=r"20000 bytes cannot be written \(No space left on device\)"):
        fetch(cache, 1)
    assert list(cache.directory.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="a second user needs root")
def test_two_users_share_a_folder():
    """The second one reads what the first one cached, adds to it and removes nothing of the first one's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    cache = NodeCache(folder, 2 * SIZE)
    fetch(cache, 1)
    (folder / "lock").touch(0o644)  # left by a process of the first user that was killed
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            other = NodeCache(folder, 2 * SIZE)
            handle = other.open(url(1), SIZE, digest(1))
            assert handle is not None
            assert read_at(handle, 0, SIZE) == content(1)
            assert fetch(other, 2) == (content(2), True)
            assert fetch(other, 3) == (content(3), True)  # in the place of its own
            assert [held(other, number) for number in (1, 2, 3)] == [True, False, True]
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert fetch(cache, 3)[1] is False
    shutil.rmtree(folder)
