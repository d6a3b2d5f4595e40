"""Mutual exclusion of processes on several machines that share nothing but a file system, which may be NFS.

A lock is a folder with ``owner.json`` in it. It is taken by renaming a folder that is complete onto its name, which
fails while one is there, and needs no ``flock``. An owner is taken for dead when its process no longer exists on this
machine, when it belonged to an earlier start of this same Slurm job, or when it has not touched its file for ``STALE``
seconds by the clock of the one who waits (clocks of two machines are not compared). Then the folder is renamed to a
name that holds the owner's token: of several that wait only one can do so, and none can by mistake remove the lock of
the one after. Such a folder stays until the work under the lock is done.
"""

import errno
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

from pydantic import Field
from typing_extensions import TypedDict  # pydantic takes the one of typing from Python 3.12 on

from stagecoach.data.files import temporary_name
from stagecoach.data.local_files import DamagedError, MissingError, retried
from stagecoach.data.reading import Count, parse_json, read_regular

OWNER = "owner.json"
BEAT = 10.0
"""Seconds between two signs of life."""
STALE = 180.0
"""Seconds without one; attribute caches of NFS may hold one back for a minute."""
POLL = 0.1
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


class Owner(TypedDict):
    """``owner.json``. What later versions say besides is passed over."""

    token: Annotated[str, Field(pattern="^[0-9A-Za-z_-]{1,80}$")]
    host: str
    processes: str
    process: Annotated[int, Field(ge=1, lt=2**31)]
    started: str
    since: NotRequired[str]
    job: NotRequired[str | None]
    restarts: NotRequired[Count]


class HeldError(Exception):
    """The lock is another's, which is alive. ``owner`` is its ``identity``."""

    def __init__(self, owner: dict[str, Any]) -> None:
        super().__init__(f"held by {describe(owner)}")
        self.owner = owner


class DirectoryLock:
    """The lock ``path``, whose parent exists. ``held`` says whether it is still ours."""

    def __init__(self, path: str | Path, token: str | None = None) -> None:
        """``token``: of a holder, on whose behalf another process asks."""
        self.path, self.token = Path(path), token or uuid.uuid4().hex
        self._released = threading.Event()

    def acquire(self, refuse: bool = False, on_wait: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Wait until the lock is ours; with ``refuse`` only until it is known whether its owner lives, in which case
        ``HeldError`` is raised. ``on_wait`` is called once with the owner that is waited for.

        Raises ``FileNotFoundError`` where its parent is not there or was removed, ``DamagedError`` where something else
        than a lock has its name, ``UnreachableError`` for a file system that gives no answer.
        """
        seen: tuple[Any, float] | None = None
        while not self._take():
            owner, sign = self._owner()
            now = time.monotonic()
            if seen is None or seen[0] != (owner, sign):
                if refuse and owner is not None and (_is_here(owner) or seen is not None) and not is_dead(owner):
                    raise HeldError(owner)
                if on_wait is not None and seen is None and owner is not None and not is_dead(owner):
                    on_wait(owner)
                seen = (owner, sign), now
            if owner is not None and (is_dead(owner) or now - seen[1] > STALE):
                self._bury(owner)
                continue
            time.sleep(POLL)
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def release(self) -> None:
        """Give it back; nothing happens where it is no longer ours."""
        self._released.set()
        with suppress(OSError, ValueError):  # out of reach it stays, and this process is known to be dead then
            if self.held():
                aside = temporary_name(self.path)
                os.rename(self.path, aside)
                shutil.rmtree(aside, ignore_errors=True)

    def held(self) -> bool:
        owner, _ = self._owner()
        return owner is not None and owner["token"] == self.token

    def lost_to(self) -> dict[str, Any] | None:
        """The ``identity`` of the one that has taken it since (empty where it has left again); None while it is ours,
        or its folder out of reach."""
        try:
            owner, _ = self._owner()
        except (OSError, ValueError):
            return None
        return None if owner is not None and owner["token"] == self.token else owner or {}

    def _take(self) -> bool:
        ready = temporary_name(self.path)
        ready.mkdir()
        try:
            (ready / OWNER).write_text(json.dumps({"token": self.token, **identity()}))
            os.rename(ready, self.path)
        except OSError as error:
            # A server that repeats a rename after a lost answer reports a failure although it took place.
            if error.errno not in TAKEN and not self.held():
                raise
        finally:
            shutil.rmtree(ready, ignore_errors=True)
        # A success counts for nothing where the parent was renamed meanwhile, by whoever held the lock and removed it.
        return self.held()

    def _owner(self) -> tuple[dict[str, Any] | None, int]:
        """Who holds it, and the time of the last sign of life; (None, 0) where nobody does."""
        path = self.path / OWNER
        try:
            sign = retried(str(path), lambda: os.lstat(path).st_mtime_ns)
        except MissingError:
            if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
                raise DamagedError(
                    f"{self.path}: no folder, expected a lock or nothing; remove what lies there"
                ) from None
            return None, 0
        try:
            owner = parse_json(read_regular(path), Owner, str(path), extra="ignore")
        except DamagedError:
            if not os.path.lexists(path):  # given back meanwhile
                return None, 0
            # The machine went down before the content was on its disk, or somebody put something else there.
            return {"token": f"unreadable-{sign}", "host": "", "processes": ""}, sign
        return cast(dict[str, Any], owner), sign

    def _bury(self, owner: dict[str, Any]) -> None:
        with suppress(OSError):  # another did it: the name is taken, or the lock is gone
            os.rename(self.path, self.path.with_name(f"{self.path.name}.dead-{owner['token']}"))

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError, ValueError):  # of a file system that will be back
                if not self.held():
                    return
                os.utime(self.path / OWNER)


def identity() -> dict[str, Any]:
    """What tells this process from any other, also from a later one with the same number."""
    return {
        "host": socket.gethostname(),
        "processes": _namespace(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
    }


def describe(owner: dict[str, Any]) -> str:
    if "process" not in owner:
        return f"a process that left no readable {OWNER}"
    job = f" of job {owner['job']}" if owner.get("job") else ""
    return f"process {owner.get('process')} on {owner['host']}{job}, since {owner.get('since')}"


def is_dead(owner: dict[str, Any]) -> bool:
    """Whether the process of an ``identity`` is known to be gone. That of another machine, or of a container with
    process numbers of its own, is not known, unless Slurm has ended the job it belongs to to start it again here."""
    mine = identity()
    if owner.get("job") and owner["job"] == mine["job"] and owner.get("restarts", 0) < mine["restarts"]:
        return True
    if not _is_here(owner):
        return False
    return not process_exists(owner["process"]) or _started(owner["process"]) != owner["started"]


def _is_here(owner: dict[str, Any]) -> bool:
    return (owner["host"], owner["processes"]) == (socket.gethostname(), _namespace())


def process_exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _namespace() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _started(process: int) -> str:
    """When the kernel started it, in ticks since boot; empty where there is no /proc."""
    with suppress(OSError):
        # The second field, the command in brackets, may hold blanks; the start is the 22nd.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
