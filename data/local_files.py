"""Local files, on a disk or a mounted file system: what is damaged is distinguished from what is out of reach.

What may pass (a stale handle of NFS, too many open files, an input/output error) is tried again with growing pauses and
then named; only a file that is missing, cut or none is damaged. Nothing but a regular file is opened.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from random import SystemRandom
from typing import TypeVar

T = TypeVar("T")

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds between attempts, before jitter of half to one and a half times."""

RETRIES = 6
"""Attempts after the first, half a minute in all."""

CHUNK = 1 << 24

_random = SystemRandom()  # the global generator belongs to the run, and a forked one would repeat its parent's

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV)
_REFUSED = (errno.EACCES, errno.EPERM)


class DamagedError(ValueError):
    """A file or directory is not what its manifest says."""


class MissingError(DamagedError):
    """There is no file of that name."""


class UnreachableError(ValueError):
    """A location did not give what it holds: no network, no permission, no answer in time. Says nothing about the data,
    so that nobody takes an outage for a damaged sample."""


def pause(attempt: int) -> None:
    """Wait before attempt number ``attempt`` (from 1): a delay that doubles, with jitter, so that the ranks of a
    cluster do not return all at once."""
    time.sleep(min(FIRST_DELAY * 2 ** (attempt - 1), LONGEST_DELAY) * _random.uniform(0.5, 1.5))


def retried(where: str, ask: Callable[[], T], retries: int | None = None) -> T:
    """``ask`` of a file system, as often as it takes (``RETRIES`` by default). ``where`` begins what is raised:
    ``MissingError`` or, where the file may be there but could not be asked, ``UnreachableError``."""
    attempts = 1 + (RETRIES if retries is None else retries)
    started = time.monotonic()
    for attempt in range(attempts):
        if attempt:
            pause(attempt)
        try:
            return ask()
        except OSError as error:
            cause, last = error.strerror or str(error), error
            if error.errno in _ABSENT:
                raise MissingError(
                    f"{where}: cannot be read ({cause}), expected a file there; copy or build it again"
                ) from error
            if error.errno in _REFUSED:
                raise UnreachableError(
                    f"{where}: cannot be read ({cause}), expected a file that this user may read; check its "
                    "permissions and those of its folder"
                ) from error
    raise UnreachableError(
        f"{where}: not read in {attempts} attempts over {time.monotonic() - started:.1f} s, the last ended "
        f"with {cause}; check the file system and the limit of open files"
    ) from last


class LocalFile:
    """A regular file that is read by position. ``size``: bytes when it was opened.

    A read that fails is tried again on the reopened file, since a handle that has become stale stays so. A context
    manager. Raises as ``retried``, ``DamagedError`` for what is no regular file, and ``UnreachableError`` where the
    file was replaced meanwhile.
    """

    def __init__(self, path: str | os.PathLike[str], retries: int | None = None) -> None:
        self.path, self._retries, self._handle = os.fspath(path), retries, -1
        found = retried(self.path, self._open, retries)
        self.size, self._identity = found.st_size, _identity(found)

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; fewer where the file ends before."""
        wanted = min(size, self.size - offset)
        return retried(self.path, lambda: self._read(offset, wanted), self._retries) if wanted > 0 else b""

    def sha256(self) -> str:
        found = hashlib.sha256()
        for offset in range(0, self.size, CHUNK):
            found.update(self.read(offset, CHUNK))
        return found.hexdigest()

    def _read(self, offset: int, size: int) -> bytes:
        try:
            if self._handle < 0:
                self._open_again()
            return read_at(self._handle, offset, size)
        except OSError:
            self.close()
            raise

    def _open_again(self) -> None:
        same = False
        with suppress(FileNotFoundError):
            same = _identity(self._open()) == self._identity
        if not same:
            raise UnreachableError(
                f"{self.path}: replaced while it was read, expected it to stay; start again when it is complete"
            )

    def _open(self) -> os.stat_result:
        self.close()
        try:
            self._handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is not waited for
        except ValueError as error:  # a NUL in the name
            raise DamagedError(f"{self.path!r}: cannot be read ({error}), expected the name of a file") from error
        found = os.fstat(self._handle)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise DamagedError(f"{self.path}: no regular file, expected one; remove what lies there, copy it again")
        return found


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a regular file. Raises ``UnreachableError`` where that cannot be known."""
    try:
        return stat.S_ISREG(retried(os.fspath(path), lambda: os.stat(path)).st_mode)
    except MissingError:
        return False


def read_at(handle: int, offset: int, size: int) -> bytes:
    """``size`` bytes of an open file, fewer where it ends before. Raises ``OSError``."""
    data = os.pread(handle, size, offset)
    while 0 < len(data) < size:  # Linux reads at most 2 GiB at once
        more = os.pread(handle, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
