"""One holder at a time; the dead are recognised, by their process or by their silence."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings

from stagecoach.data import locks
from stagecoach.data.local_files import DamagedError
from stagecoach.data.locks import DirectoryLock, HeldError, describe, identity, is_dead
from tests.data.test_reading import variants
from tests.data.trouble import Trouble


def take_in_a_process_that_dies(path) -> None:
    command = (
        f"import os, sys; sys.path.insert(0, {os.getcwd()!r}); from pathlib import Path; "
        f"from stagecoach.data.locks import DirectoryLock; DirectoryLock(Path({str(path)!r})).acquire(); "
        f"os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == -9
    assert path.exists()


def test_one_holds_it_at_a_time(tmp_path):
    inside, most, count = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, count
        for _ in range(5):
            lock = DirectoryLock(tmp_path / "lock")
            lock.acquire()
            inside += 1
            most = max(most, inside)
            time.sleep(0.001)
            inside -= 1
            count += 1
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, count) == (1, 30)
    assert list(tmp_path.iterdir()) == []


def test_that_of_a_dead_process_is_taken_at_once_by_one_of_those_who_wait(tmp_path):
    take_in_a_process_that_dies(tmp_path / "lock")
    held, started = [], time.monotonic()

    def work() -> None:
        lock = DirectoryLock(tmp_path / "lock")
        lock.acquire()
        held.append(lock.held())
        lock.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert held == [True] * 4
    assert time.monotonic() - started < 10


def foreign(path, **changes) -> dict:
    owner = {"token": "other", **identity(), "host": "another-host", **changes}
    path.mkdir()
    (path / "owner.json").write_text(json.dumps(owner))
    return owner


def test_that_of_another_machine_is_taken_when_it_has_been_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "STALE", 0.3)
    foreign(tmp_path / "lock")
    lock, started = DirectoryLock(tmp_path / "lock"), time.monotonic()
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.05):
            os.utime(tmp_path / "lock/owner.json")
            if time.monotonic() - started > 0.8:
                return

    thread = threading.Thread(target=live)
    thread.start()
    lock.acquire()
    stop.set()
    thread.join()
    assert time.monotonic() - started > 0.8 + 0.2, "while it gives signs of life it is waited for"
    assert lock.held()


def test_a_lock_whose_owner_cannot_be_read_is_taken_when_it_has_been_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "STALE", 0.3)
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock/owner.json").write_text("")
    lock = DirectoryLock(tmp_path / "lock")
    lock.acquire()
    assert lock.held()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["pipe", "folder", "ring", "noise", "shape"])
def test_no_regular_file_in_the_place_of_an_owner_is_opened_and_it_is_waited_for(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(locks, "STALE", 0.3)
    (tmp_path / "lock").mkdir()
    path = tmp_path / "lock/owner.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "ring":
        path.symlink_to(path)
    else:
        path.write_bytes(b"\xff" if kind == "noise" else b"[" * 50_000)
    lock, waited = DirectoryLock(tmp_path / "lock"), []
    lock.acquire(refuse=True, on_wait=waited.append)
    assert lock.held()
    assert "no readable owner.json" in describe(waited[0])


OWNER = {"token": "ab-1", "host": "h", "processes": "pid:[1]", "process": 7, "started": "1", "job": "9", "restarts": 0}


@given(variants(OWNER))
@settings(max_examples=150, deadline=None)
def test_an_owner_that_was_changed_is_one_or_is_unreadable(content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "lock").mkdir()
        (Path(folder) / "lock/owner.json").write_bytes(content)
        lock = DirectoryLock(Path(folder) / "lock")
        owner, sign = lock._owner()
        assert sign
        is_dead(owner)
        assert describe(owner)
        lock._bury(owner)
        assert [path.name for path in Path(folder).iterdir()] == [f"lock.dead-{owner['token']}"]


def test_what_is_no_folder_in_the_place_of_a_lock_is_named(tmp_path):
    (tmp_path / "lock").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"lock: no folder, expected a lock or nothing; remove what lies there"):
        DirectoryLock(tmp_path / "lock").acquire()


def test_a_moment_of_trouble_does_not_end_the_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    lock = DirectoryLock(tmp_path / "lock")
    lock.acquire()
    with Trouble(monkeypatch, "owner.json", errno.EIO):
        time.sleep(0.3)
    before = (tmp_path / "lock/owner.json").stat().st_mtime_ns
    time.sleep(0.4)
    assert (tmp_path / "lock/owner.json").stat().st_mtime_ns > before
    lock.release()


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    lock = DirectoryLock(tmp_path / "lock")
    lock.acquire()
    before = (tmp_path / "lock/owner.json").stat().st_mtime_ns
    time.sleep(0.4)
    assert (tmp_path / "lock/owner.json").stat().st_mtime_ns > before
    lock.release()
    time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []


def test_who_has_lost_it_does_not_remove_that_of_the_one_after(tmp_path):
    first, second = DirectoryLock(tmp_path / "lock"), DirectoryLock(tmp_path / "lock")
    first.acquire()
    os.rename(tmp_path / "lock", tmp_path / "lock.dead-first")
    second.acquire()
    first.release()
    assert second.held()
    assert not first.held()


def test_who_has_lost_it_learns_to_whom_and_a_file_system_that_is_away_proves_nothing(tmp_path, monkeypatch):
    first, second = DirectoryLock(tmp_path / "lock"), DirectoryLock(tmp_path / "lock")
    first.acquire()
    assert first.lost_to() is None
    os.rename(tmp_path / "lock", tmp_path / "lock.dead-first")
    assert first.lost_to() == {}
    second.acquire()
    assert first.lost_to()["process"] == os.getpid()
    with monkeypatch.context() as away:
        away.setattr(first, "_owner", stale)
        assert first.lost_to() is None
        first.release()
    assert second.lost_to() is None


def stale() -> None:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def test_signs_of_life_go_on_after_a_file_system_was_away(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    lock = DirectoryLock(tmp_path / "lock")
    lock.acquire()
    with monkeypatch.context() as away:
        away.setattr(lock, "_owner", stale)
        time.sleep(0.3)
    before = (tmp_path / "lock/owner.json").stat().st_mtime_ns
    time.sleep(0.4)
    assert (tmp_path / "lock/owner.json").stat().st_mtime_ns > before
    lock.release()


def test_one_that_was_buried_by_another_cannot_be_buried_again(tmp_path):
    """Two wait for a dead owner; the slower one may not take the faster one's lock for the dead one's."""
    owner = foreign(tmp_path / "lock")
    fast, slow = DirectoryLock(tmp_path / "lock"), DirectoryLock(tmp_path / "lock")
    fast._bury(owner)
    fast.acquire()
    slow._bury(owner)
    assert fast.held()


def test_without_its_folder_it_cannot_be_taken(tmp_path):
    with pytest.raises(FileNotFoundError):
        DirectoryLock(tmp_path / "none/lock").acquire()


def test_only_processes_of_this_machine_are_known_to_be_dead():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    gone = {**identity(), "process": done.pid, "started": "1"}
    assert is_dead(gone)
    assert not is_dead({**gone, "host": "another-host"})
    assert not is_dead({**gone, "processes": "pid:[1]"}), "a container has process numbers of its own"
    assert not is_dead(identity())
    assert is_dead({**identity(), "started": "1"}), "the number was given to another process"


def test_who_does_not_wait_is_told_of_a_living_owner_and_takes_the_place_of_a_dead_one(tmp_path, monkeypatch):
    first = DirectoryLock(tmp_path / "lock")
    first.acquire()
    with pytest.raises(HeldError, match=rf"process {os.getpid()} on .*, since 20"):
        DirectoryLock(tmp_path / "lock").acquire(refuse=True)
    first.release()
    take_in_a_process_that_dies(tmp_path / "lock")
    DirectoryLock(tmp_path / "lock").acquire(refuse=True)
    # Of another machine only its signs of life tell.
    monkeypatch.setattr(locks, "STALE", 0.4)
    owner = foreign(tmp_path / "elsewhere")
    threading.Timer(0.2, os.utime, [tmp_path / "elsewhere/owner.json"]).start()
    waited = []
    with pytest.raises(HeldError, match="another-host"):
        DirectoryLock(tmp_path / "elsewhere").acquire(refuse=True, on_wait=waited.append)
    assert waited == [owner]
    DirectoryLock(tmp_path / "elsewhere").acquire(refuse=True)


def test_the_start_before_of_a_requeued_job_is_dead_wherever_it_was(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = {**identity(), "host": "another-host"}
    assert not is_dead(before)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert is_dead(before)
    assert not is_dead({**before, "job": "8"})
