"""Where the files of a set of shards lie: a local folder, or what a URL names. Files are known by name in a folder.

Local reads open the file each time: at 1.8 MB from the page cache that is 3 of 95 microseconds, which does not pay for
descriptors that would outlive a fork or a replaced file.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import TypeVar

from stagecoach.data.files import DamagedError

T = TypeVar("T")

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds between attempts, before jitter of half to one and a half times."""

LOCAL_RETRIES = 6
"""Attempts after the first at a file of a mounted file system, half a minute in all."""

SMALL = 1 << 30
"""Bytes that a manifest or an index may have."""

_random = SystemRandom()  # the global generator belongs to the run, and a forked one would repeat its parent's

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_REFUSED = (errno.EACCES, errno.EPERM)


class UnreachableError(ValueError):
    """A location did not give what it holds: no network, no permission, no answer in time. Says nothing about the data,
    so that nobody takes an outage for a damaged sample."""


def pause(attempt: int) -> None:
    """Wait before attempt number ``attempt`` (from 1): a delay that doubles, with jitter, so that the ranks of a
    cluster do not return all at once."""
    time.sleep(min(FIRST_DELAY * 2 ** (attempt - 1), LONGEST_DELAY) * _random.uniform(0.5, 1.5))


@dataclass(frozen=True)
class CacheOptions:
    """A folder on a local disk in which the processes of a node keep whole shards. ``max_bytes``: of all files in it,
    downloads in flight included."""

    directory: Path
    max_bytes: int

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ValueError(
                f"the cache in {self.directory} may hold {self.max_bytes} bytes, expected at least the "
                f"size of a shard; raise max_bytes or leave the cache out"
            )


class Storage(ABC):
    """The files of one folder. Safe from several threads, after ``fork``, and sent to another process by pickle.

    Reading raises ``DamagedError`` where a file is missing or shorter than asked, and ``UnreachableError`` where the
    location could not be asked. ``url`` and ``describe`` are for messages and hold no password.
    """

    url: str

    def describe(self, name: str) -> str:
        """The full location of a file."""
        return f"{self.url}/{name}"

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file, ``None`` where there is none of that name."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A whole, small file: a manifest or an index."""

    @abstractmethod
    def read_range(
        self, name: str, offset: int, size: int, expected_bytes: int | None = None, sha256: str | None = None
    ) -> bytes:
        """Exactly ``size`` bytes from ``offset``. ``expected_bytes`` and ``sha256`` (hex) are those of the whole file;
        a cache knows its copies by them."""

    @abstractmethod
    def names(self) -> list[str]:
        """Files directly in the folder, sorted. A plain http server may list none."""

    @abstractmethod
    def child(self, name: str) -> Storage:
        """A folder in this one; it need not exist."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self.size(name) is not None

    def forget(self, name: str, expected_bytes: int | None = None, sha256: str | None = None) -> bool:
        """Say that bytes read from a file were wrong. ``True``: they came from a copy, which is checked and dropped, so
        that reading once more can give others; ``False``: this is what the location itself holds."""
        return False


class LocalStorage(Storage):
    """A folder of this machine or of a mounted file system. What may pass there (a stale handle of NFS, too many open
    files, an input/output error) is tried again and then named; only a file that is missing, cut or none is damaged."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self.url = str(self.directory)

    def size(self, name: str) -> int | None:
        def look() -> int | None:
            found = os.stat(self.directory / name)
            return found.st_size if stat.S_ISREG(found.st_mode) else None

        try:
            return _asked(self.describe(name), look)
        except _MissingError:
            return None

    def read(self, name: str) -> bytes:
        return self._read(name, 0, None)

    def read_range(
        self, name: str, offset: int, size: int, expected_bytes: int | None = None, sha256: str | None = None
    ) -> bytes:
        return self._read(name, offset, size)

    def _read(self, name: str, offset: int, size: int | None) -> bytes:
        where = self.describe(name)

        def read() -> bytes:
            handle = _open(where)
            try:
                total = os.fstat(handle).st_size
                wanted = total if size is None else size
                # An index may ask for more than the file has.
                if size is None and total > SMALL:
                    raise DamagedError(f"{where}: {total:,} bytes, expected at most {SMALL:,}; it is none of ours")
                data = read_at(handle, offset, wanted) if offset + wanted <= total else b""
                if len(data) != wanted:
                    raise DamagedError(
                        f"{where}: {max(0, min(wanted, total - offset))} of {wanted} bytes at offset {offset}; it was "
                        "cut short, copy or build it again"
                    )
                return data
            finally:
                os.close(handle)

        return _asked(where, read)

    def names(self) -> list[str]:
        def look() -> list[str]:
            with os.scandir(self.directory) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())

        try:
            return _asked(self.url, look)
        except _MissingError as error:
            raise UnreachableError(
                f"{self.directory}: cannot be listed ({error.reason}), expected a folder; check the path and its "
                "permissions"
            ) from error

    def child(self, name: str) -> LocalStorage:
        return LocalStorage(self.directory / name)


class _MissingError(DamagedError):
    """There is no file of that name."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: cannot be read ({reason}), expected a file there; copy or build it again")
        self.reason = reason


def _open(path: str | os.PathLike[str]) -> int:
    """A descriptor of a regular file; a pipe is not waited for. Raises ``OSError`` and ``DamagedError``."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DamagedError(f"{path}: no regular file, expected one; remove what lies there and copy it again")
    return handle


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor of a regular local file, which the caller closes. Raises as ``LocalStorage`` does."""
    return _asked(os.fspath(path), lambda: _open(path))


def _asked(where: str, ask: Callable[[], T]) -> T:
    """``ask`` of a file system, as often as it takes."""
    started = time.monotonic()
    for attempt in range(LOCAL_RETRIES + 1):
        if attempt:
            pause(attempt)
        try:
            return ask()
        except OSError as error:
            cause, last = error.strerror or str(error), error
            if error.errno in _ABSENT:
                raise _MissingError(where, cause) from error
            if error.errno in _REFUSED:
                raise UnreachableError(
                    f"{where}: cannot be read ({cause}), expected a file that this user may read; check its "
                    "permissions and those of its folder"
                ) from error
    raise UnreachableError(
        f"{where}: not read in {LOCAL_RETRIES + 1} attempts over {time.monotonic() - started:.1f} s, the last ended "
        f"with {cause}; check the file system and the limit of open files"
    ) from last


def read_at(handle: int, offset: int, size: int) -> bytes:
    """``size`` bytes of an open file, fewer where it ends before. Raises ``OSError``."""
    data = os.pread(handle, size, offset)
    while 0 < len(data) < size:  # Linux reads at most 2 GiB at once
        more = os.pread(handle, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
