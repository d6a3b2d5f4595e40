"""Where the files of a set of shards lie: a local folder, or what a URL names. Files are known by name in a folder.

Local reads open the file each time: at 1.8 MB from the page cache that is 3 of 95 microseconds, which does not pay for
descriptors that would outlive a fork or a replaced file.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from stagecoach.data.local_files import DamagedError, LocalFile, MissingError, UnreachableError, retried

SMALL = 1 << 30
"""Bytes that a manifest or an index may have."""


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
    """A folder of this machine or of a mounted file system, read as ``local_files`` reads."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self.url = str(self.directory)

    def size(self, name: str) -> int | None:
        def look() -> int | None:
            found = os.stat(self.directory / name)
            return found.st_size if stat.S_ISREG(found.st_mode) else None

        try:
            return retried(self.describe(name), look)
        except MissingError:
            return None

    def read(self, name: str) -> bytes:
        with LocalFile(self.directory / name) as file:
            if file.size > SMALL:
                raise DamagedError(f"{file.path}: {file.size:,} bytes, expected at most {SMALL:,}; it is none of ours")
            return file.read(0, file.size)

    def read_range(
        self, name: str, offset: int, size: int, expected_bytes: int | None = None, sha256: str | None = None
    ) -> bytes:
        with LocalFile(self.directory / name) as file:
            # An index may ask for more than the file has.
            data = file.read(offset, size) if offset + size <= file.size else b""
            if len(data) != size:
                raise DamagedError(
                    f"{file.path}: {max(0, min(size, file.size - offset))} of {size} bytes at offset {offset}; it was "
                    "cut short, copy or build it again"
                )
            return data

    def names(self) -> list[str]:
        def look() -> list[str]:
            with os.scandir(self.directory) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())

        try:
            return retried(self.url, look)
        except MissingError as error:
            raise UnreachableError(
                f"{self.directory}: cannot be listed ({getattr(error.__cause__, 'strerror', error)}), expected a "
                "folder; check the path and its permissions"
            ) from error

    def child(self, name: str) -> LocalStorage:
        return LocalStorage(self.directory / name)
