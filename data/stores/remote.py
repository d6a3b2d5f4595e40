"""Files behind a URL, read in ranges; each read ends in a bounded time, with its bytes or with a sentence.

An attempt has ``timeout`` seconds, and more while its answer comes in. What may pass (no answer in time, connections
lost, status 5xx, 408 and 429) is tried again after a delay that doubles.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from threading import Thread
from typing import BinaryIO, TypeVar
from urllib.parse import quote, urlsplit

from stagecoach.data.local_files import DamagedError, UnreachableError, pause
from stagecoach.data.stores.drivers import SLOWEST, Driver, NoRangesError, driver, write_at
from stagecoach.data.stores.storage import Storage

T = TypeVar("T")

PART = 8 << 20
"""Bytes of a request when a file is downloaded in ranges, and how many of them are under way."""
PARTS_AT_ONCE = 4

_LASTING = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    ImportError,
)


class RemoteStorage(Storage):
    """A folder behind a URL of any scheme that fsspec knows. ``timeout``: seconds per attempt; ``retries``: attempts
    after the first. The query of an http URL (a signature, say) is sent with each file and kept out of messages.

    Raises ``ValueError`` if there is no driver for the scheme.
    """

    def __init__(self, url: str, timeout: float, retries: int) -> None:
        self._full, self.timeout, self.retries = url, timeout, retries
        self.url = url.rstrip("/")
        if url.lower().startswith("http"):
            parts = urlsplit(url)
            bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
            self.url = bare.geturl().rstrip("/")
        driver(url)

    def size(self, name: str) -> int | None:
        return self._asked(self.describe(name), lambda d: d.size(self._location(name), self.timeout), lambda: None)

    def read(self, name: str) -> bytes:
        return self._asked(self.describe(name), lambda d: d.read(self._location(name), self.timeout))

    def read_range(
        self, name: str, offset: int, size: int, expected_bytes: int | None = None, sha256: str | None = None
    ) -> bytes:
        return self._asked(
            self.describe(name),
            lambda d: d.read_range(self._location(name), offset, size, self.timeout, expected_bytes),
        )

    def names(self) -> list[str]:
        return self._asked(self.url, lambda d: d.names(self._full, self.timeout))

    def child(self, name: str) -> RemoteStorage:
        return RemoteStorage(self._location(name), self.timeout, self.retries)

    def download(self, name: str, handle: BinaryIO, expected_bytes: int) -> None:
        """Write a whole file to ``handle`` from its start, in ranges, or in one piece where the server has none.

        Raises as reading does; ``DamagedError`` if the file turns out to be larger or smaller than expected.
        """
        try:
            self._download_parts(name, handle, expected_bytes)
        except NoRangesError:
            where = self.describe(name)
            self._asked(where, lambda d: d.download(self._location(name), handle, expected_bytes, self.timeout))
            if handle.tell() != expected_bytes:
                raise DamagedError(
                    f"{where}: {handle.tell()} bytes, expected {expected_bytes} as the manifest lists; "
                    f"it was cut or replaced, copy or build it again"
                ) from None

    def _download_parts(self, name: str, handle: BinaryIO, expected_bytes: int) -> None:
        offsets = iter(range(0, expected_bytes, PART))
        failures: list[Exception] = []

        def part(offset: int) -> None:
            data = self.read_range(name, offset, min(PART, expected_bytes - offset), expected_bytes)
            write_at(handle, data, offset)

        def work() -> None:
            try:
                for offset in offsets:
                    if failures:
                        break
                    part(offset)
            except Exception as error:
                failures.append(error)

        for offset in islice(offsets, 1):  # alone: it shows whether ranges are known
            part(offset)
        # Daemons, since a process that ends shall not wait for a download.
        threads = [Thread(target=work, daemon=True, name="download") for _ in range(PARTS_AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _location(self, name: str) -> str:
        if not self._full.lower().startswith("http"):
            return f"{self._full.rstrip('/')}/{name}"
        parts = urlsplit(self._full)
        return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}").geturl()

    def _asked(self, where: str, ask: Callable[[Driver], T], absent: Callable[[], T] | None = None) -> T:
        """``ask`` of the driver, as often as it takes. ``absent`` gives the answer for a file that is not there, which
        is an error without it."""
        started = time.monotonic()
        for attempt in range(self.retries + 1):
            if attempt:
                pause(attempt)
            try:
                return ask(driver(self._full))
            except DamagedError as error:
                raise DamagedError(f"{where}: {error}; it was cut or replaced, copy or build it again") from error
            except UnreachableError as error:
                raise type(error)(f"{where}: {error}") from error
            except FileNotFoundError as error:
                if absent is not None:
                    return absent()
                raise DamagedError(f"{where}: missing, expected a file there; copy or build it again") from error
            except Exception as error:
                cause, last = _describe(error, self.timeout), error
                if not _may_pass(error):
                    raise UnreachableError(
                        f"{where}: refused at attempt {attempt + 1} ({cause}); check the address, "
                        f"the keys and the permissions"
                    ) from error
        spent = time.monotonic() - started
        raise UnreachableError(
            f"{where}: not read in {self.retries + 1} attempts over {spent:.1f} s, the last ended "
            f"with {cause}; check the network and the server"
        ) from last


def _status(error: Exception) -> int | None:
    """The http status that a driver's error carries, as aiohttp (``status``) and gcsfs (``code``) do."""
    found = getattr(error, "status", None) or getattr(error, "code", None)
    return found if isinstance(found, int) and 400 <= found < 600 else None


def _may_pass(error: Exception) -> bool:
    """Whether another attempt can help. Drivers raise what they like, so what is unknown is tried again."""
    status = _status(error)
    if status is not None:
        return status >= 500 or status in (408, 425, 429)
    return not isinstance(error, _LASTING)


def _describe(error: Exception, timeout: float) -> str:
    """The cause in words, without the URL that aiohttp's own words hold: it may be signed."""
    status = _status(error)
    if status is not None:
        return f"status {status} {getattr(error, 'message', '')}".rstrip()
    if isinstance(error, TimeoutError):
        return f"no answer in time, less than {SLOWEST >> 10} kB/s of it after {timeout:g} s"
    return f"{type(error).__name__}: {error}"
