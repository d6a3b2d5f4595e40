"""Whole files on a local disk, shared by the processes of a node: downloaded once, removed when least recently used.

``<key>.file`` is complete, checked and synced; its time of change is that of its last use. A download goes to a
temporary name, made at full length so that its bytes count at once. Who downloads holds ``<key>.lock``, and who counts
and removes holds ``lock``, both with flock, which the kernel drops when a process dies: that is how others know a
leftover from a download. A reader keeps its descriptor, so that removing a file takes nothing from it.

Several users may share a folder: what belongs to another is read and counted, and stays where it may not be removed.
"""

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from stagecoach.data.files import TEMPORARY, DamagedError, sha256_file, sync_directory, temporary_name
from stagecoach.data.local_files import UnreachableError
from stagecoach.data.stores.drivers import DiskError

Download = Callable[[BinaryIO], None]

POLL = 0.05
"""Seconds between two looks at what another process holds."""

PATIENCE = 60.0
"""Seconds to wait for the lock under which files are counted, which nobody holds for long."""

_STARTED = re.compile(rf"{re.escape(TEMPORARY)}(\w+\.file)\..*")

_held: set[int] = set()
"""Descriptors of locks of this process. A forked child closes its own copies: they would keep a lock alive beyond the
death of the process that took it."""


def _close_inherited() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited)


class NodeCache:
    """The files of a folder, at most ``max_bytes`` of them, downloads in flight included.

    A file is known by ``url``, its size and its sha256 (hex; ``None``: unchecked but for the size). Several threads and
    processes may use a folder, also through objects of their own. Killed at any moment, a process leaves nothing that
    counts or is taken for a file.
    """

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int) -> None:
        self.directory, self.max_bytes = Path(directory), max_bytes
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnreachableError(
                f"{self.directory}: cannot be made a cache folder ({error.strerror}), expected a "
                f"writable folder on a local disk; give another"
            ) from error

    def open(self, url: str, expected_bytes: int, digest: str | None) -> int | None:
        """A descriptor of a cached file, which the caller closes; ``None`` where there is none yet."""
        path = self._path(url, expected_bytes, digest)
        try:
            handle = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, PermissionError):  # another user may keep it for himself
            return None
        if os.fstat(handle).st_size != expected_bytes:  # cut by someone else
            os.close(handle)
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # a file of another user: it keeps the time of its owner's last use
            os.utime(handle)
        return handle

    def fetch(self, url: str, expected_bytes: int, digest: str | None, download: Download, wait: float) -> int | None:
        """A descriptor of the file, which the caller closes. If no process has it yet, ``download`` writes it to the
        file it is given, all ``expected_bytes``, or raises. If another is downloading it, or all space is taken by
        downloads, wait ``wait`` seconds; ``None`` where that was in vain.

        Raises ``DamagedError`` if the bytes downloaded are not the expected ones, ``UnreachableError`` for a file that
        is larger than the cache, ``OSError`` for a disk that fails, and what ``download`` raises.
        """
        if expected_bytes > self.max_bytes:
            raise UnreachableError(
                f"{url}: {expected_bytes} bytes, expected at most the {self.max_bytes} that the "
                f"cache {self.directory} may hold; raise max_bytes or leave the cache out"
            )
        handle = self.open(url, expected_bytes, digest)
        if handle is not None:
            return handle
        until = time.monotonic() + wait
        path = self._path(url, expected_bytes, digest)
        with _locked(path.with_suffix(".lock"), until) as mine:
            if not mine:
                return None
            handle = self.open(url, expected_bytes, digest)  # it may have come meanwhile
            if handle is not None:
                return handle
            temporary = self._reserve(path, expected_bytes, until)
            return None if temporary is None else self._fill(temporary, path, url, expected_bytes, digest, download)

    def forget(self, url: str, expected_bytes: int, digest: str | None) -> bool:
        """Remove a file of which bytes were found wrong, unless its sha256 is right (it was fetched again meanwhile, or
        is wrong at its source). ``True`` if there was one, so that reading again can help."""
        path = self._path(url, expected_bytes, digest)
        try:
            if digest is None or sha256_file(path) != digest:
                path.unlink()
        except (FileNotFoundError, PermissionError):
            return False
        return True

    def _path(self, url: str, expected_bytes: int, digest: str | None) -> Path:
        key = sha256(f"{url}\n{expected_bytes}\n{digest}".encode()).hexdigest()[:40]
        return self.directory / f"{key}.file"

    def _reserve(self, path: Path, expected_bytes: int, until: float) -> Path | None:
        """An empty file of full length, for which older ones were removed. The caller holds the lock of ``path``."""
        temporary = temporary_name(path)
        while True:
            with self._counting():
                if self._free_space(expected_bytes, path):
                    try:
                        with open(temporary, "xb") as handle:
                            _take_space(handle.fileno(), expected_bytes)
                    except OSError as error:
                        temporary.unlink(missing_ok=True)
                        raise DiskError(
                            f"{self.directory}: {expected_bytes} bytes cannot be written ({error.strerror}), expected "
                            f"space for a shard; free some, lower max_bytes or leave the cache out"
                        ) from error
                    return temporary
            if time.monotonic() > until:
                return None
            time.sleep(POLL)

    def _free_space(self, needed: int, path: Path) -> bool:
        """Remove leftovers, then the least recently used, until ``needed`` bytes fit; whether they do. ``path`` is the
        file to come: what is left of earlier downloads of it is removed too."""
        found, total = [], 0
        for entry in self.directory.iterdir():
            started = _STARTED.fullmatch(entry.name)
            if started and self._is_left(self.directory / started[1], path) and _removed(entry):
                continue
            if started or entry.suffix == ".file":
                try:
                    state = entry.stat()
                except FileNotFoundError:
                    continue
                total += state.st_size
                if not started:
                    found.append((state.st_mtime_ns, state.st_size, entry))
        for _, size, entry in sorted(found):
            if total + needed <= self.max_bytes:
                break
            total -= size if _removed(entry) else 0
        return total + needed <= self.max_bytes

    def _is_left(self, file: Path, mine: Path) -> bool:
        """Whether nobody downloads this file any more."""
        if file == mine:
            return True
        with _locked(file.with_suffix(".lock"), 0) as free:
            return free

    def _fill(
        self, temporary: Path, path: Path, url: str, expected_bytes: int, digest: str | None, download: Download
    ) -> int:
        try:
            with open(temporary, "r+b", buffering=0) as handle:
                download(handle)
                os.fsync(handle.fileno())
            size = temporary.stat().st_size
            if size != expected_bytes:
                raise DamagedError(
                    f"{url}: {size} bytes came, expected {expected_bytes} as the manifest lists; it was "
                    f"replaced, copy or build it again"
                )
            if digest is not None and sha256_file(temporary) != digest:
                raise DamagedError(
                    f"{url}: the content that came differs from the sha256 in the manifest; it was "
                    f"damaged or replaced, copy or build it again"
                )
            kept = os.open(temporary, os.O_RDONLY)  # others may remove the file as soon as it has its name
            try:
                with self._counting():  # who counts sees it under one of its names
                    os.replace(temporary, path)
                sync_directory(self.directory)
            except BaseException:
                os.close(kept)
                raise
            return kept
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        path = self.directory / "lock"
        with _locked(path, time.monotonic() + PATIENCE) as mine:
            if not mine:
                raise UnreachableError(
                    f"{path}: held by another process for {PATIENCE:g} s, expected moments; end the "
                    f"process that is stopped there"
                )
            yield


def _removed(path: Path) -> bool:
    """Remove a file that may be gone already; whether it is."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        return False
    return True


def _take_space(handle: int, size: int) -> None:
    """Give a file its length, on the disk where the file system can. Raises ``OSError`` where there is no space."""
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.truncate(handle, size)


@contextmanager
def _locked(path: Path, until: float) -> Iterator[bool]:
    """Hold the lock ``path``; ``False`` if it was not free until that time (``time.monotonic``; one try at least).

    The holder removes the file of a lock, so one that was taken counts only if it is still the file of that name.
    """
    while True:
        try:
            # Reading is enough for flock, and another user's lock can be read. A folder like /tmp lets nobody open
            # another's file with the wish to create it.
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644))
            continue
        _held.add(handle)
        try:
            if _take(handle, path):
                try:
                    yield True
                finally:
                    _removed(path)
                return
        finally:
            _held.discard(handle)
            os.close(handle)
        if time.monotonic() >= until:
            yield False
            return
        time.sleep(POLL)


def _take(handle: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
