"""One attempt at one request to a remote store, within a deadline: fsspec's drivers, and ranges over http(s) in full.

An answer over http(s) is left when nothing of it came for ``timeout`` seconds, however long all of it takes; other
drivers show no progress and get ``timeout`` and the time of the slowest answer that is waited for.

fsspec's http driver takes all that a server sends for a range, be it the whole file or other bytes, and reads a 500 as
a missing file when asked for a size. So the requests are made here, on the driver's own session.
"""

from __future__ import annotations

import asyncio
import os
import re
import selectors
from collections.abc import AsyncIterator, Callable
from threading import Thread
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.asyn import sync

from stagecoach.data.local_files import DamagedError, UnreachableError
from stagecoach.data.stores.storage import SMALL

_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_CHUNK = 1 << 20

SLOWEST = 1 << 16
"""Bytes per second that an answer must reach on average behind its first ``timeout``, or its attempt ends."""

_made: dict[tuple[int, str], Driver] = {}
"""By process and location. A forked child makes its own."""


def _part_from_parent() -> None:
    """A forked child shares the epoll object of its parent's event loop. Sessions that it closes there, at its end at
    the latest, take the parent's connections out of it, which then wait for answers in vain; so it gets another."""
    for inherited in _made.values():
        if inherited.loop is not None and hasattr(inherited.loop, "_selector"):
            inherited.loop._selector = selectors.DefaultSelector()


os.register_at_fork(after_in_child=_part_from_parent)


class NoRangesError(UnreachableError):
    """A server that sends whole files only. They can be downloaded, not read in parts."""


class DiskError(UnreachableError):
    """The disk of the node cache failed, which says nothing about the store."""


class ShortError(EOFError):
    """Fewer bytes than asked, of a file that may well hold them."""


def driver(url: str) -> Driver:
    """The driver of a location, of this process. Raises ``ValueError`` if there is none or its package is missing."""
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    key = os.getpid(), f"{scheme}://{rest.partition('/')[0]}"
    if key not in _made:
        try:
            fsspec.get_filesystem_class(scheme)
        except ImportError as error:
            package = _PACKAGES.get(scheme)
            advice = f"pip install {package}" if package else f"{error}"
            raise ValueError(
                f"{scheme}: URLs need a package that cannot be imported ({error.__cause__ or error}); {advice}"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"{scheme}: URLs are unknown to fsspec, expected a local path, file:, http:, https:, s3: "
                f"or another that it has a driver for; check the spelling"
            ) from error
        _made.setdefault(key, (HttpDriver if scheme in ("http", "https") else Driver)(url))
    return _made[key]


class Driver:
    """Requests through fsspec's own methods. What they raise comes out as it is; ``timeout`` is in seconds."""

    def __init__(self, url: str) -> None:
        cls = fsspec.get_filesystem_class(url.partition("://")[0].lower())
        options = {"use_listings_cache": False} if cls.async_impl else {}  # others hand unknown options to a server
        self.fs = self._make(url, options)
        self.loop = self.fs.loop if cls.async_impl else None

    def _make(self, url: str, options: dict[str, Any]) -> Any:
        return fsspec.core.url_to_fs(url, skip_instance_cache=True, **options)[0]

    def _call(self, timeout: float, method: str, *args: Any, **options: Any) -> Any:
        if self.fs.async_impl:
            return sync(self.loop, getattr(self.fs, f"_{method}"), *args, timeout=timeout, **options)
        return _within(timeout, lambda: getattr(self.fs, method)(*args, **options))

    def size(self, url: str, timeout: float) -> int | None:
        """Bytes; ``None`` for a folder. Raises ``FileNotFoundError``."""
        info = self._call(timeout, "info", self.fs._strip_protocol(url))
        return info["size"] if info["type"] == "file" else None

    def read(self, url: str, timeout: float) -> bytes:
        return self._call(timeout, "cat_file", self.fs._strip_protocol(url))

    def read_range(self, url: str, offset: int, size: int, timeout: float, expected_bytes: int | None = None) -> bytes:
        """Exactly ``size`` bytes. Raises ``ShortError``, and ``DamagedError`` where the file is known to be shorter."""
        plain = {} if self.fs.async_impl else {"cache_type": "none"}  # or it would read ahead
        within = timeout + size / SLOWEST
        data = self._call(within, "cat_file", self.fs._strip_protocol(url), start=offset, end=offset + size, **plain)
        if len(data) != size:
            total = self.size(url, timeout)
            if total is not None and total < offset + size:
                raise DamagedError(f"{total} bytes, expected {offset + size} or more")
            raise ShortError(f"{len(data)} of {size} bytes")
        return data

    def download(self, url: str, handle: BinaryIO, limit: int, timeout: float) -> None:
        """Write a whole file of at most ``limit`` bytes to ``handle``. Only HTTP servers may know no ranges."""
        raise NotImplementedError(f"{type(self).__name__} reads ranges, which is how whole files come")

    def names(self, url: str, timeout: float) -> list[str]:
        entries = self._call(timeout, "ls", self.fs._strip_protocol(url), detail=True)
        return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")


class HttpDriver(Driver):
    """Plain http(s). Compressed answers are declined: ranges of those are not ranges of the file."""

    def _make(self, url: str, options: dict[str, Any]) -> Any:
        import aiohttp

        client = {"trust_env": True, "timeout": aiohttp.ClientTimeout(total=None)}  # proxies; own deadlines
        cls = fsspec.get_filesystem_class("http")
        configured = fsspec.config.conf.get("http", {}).get("client_kwargs", {})
        return cls(skip_instance_cache=True, client_kwargs={**client, **configured}, **options)

    def _get(self, url: str, use: Callable[[_Answer], Any], timeout: float, wanted: str | None = None) -> Any:
        """What the coroutine ``use`` makes of the answer, of which some must come every ``timeout`` seconds."""
        headers = {**self.fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
        if wanted is not None:
            headers["Range"] = f"bytes={wanted}"

        async def get() -> Any:
            session = await self.fs.set_session()
            async with asyncio.timeout(timeout) as clock:
                async with session.get(self.fs.encode_url(url), **{**self.fs.kwargs, "headers": headers}) as answer:
                    if answer.status in (404, 410):
                        raise FileNotFoundError(url)
                    if answer.status != 416:
                        answer.raise_for_status()
                    return await use(_Answer(answer, clock, timeout))

        return sync(self.loop, get)

    def size(self, url: str, timeout: float) -> int | None:
        async def use(answer: _Answer) -> int:
            if answer.status == 416:  # it has no first byte
                return 0
            total = answer.content_length if answer.status == 200 else _content_range(answer)[2]
            if total is None:
                raise UnreachableError(
                    "the server does not tell how large it is, expected Content-Length or Content-Range"
                )
            return total

        return self._get(url, use, timeout, "0-0")  # a signed URL need not allow HEAD

    def read(self, url: str, timeout: float) -> bytes:
        async def use(answer: _Answer) -> bytes:
            data = await answer.read(SMALL)
            if len(data) > SMALL:
                raise UnreachableError(f"more than {SMALL:,} bytes, expected a manifest or an index; check the address")
            return data

        return self._get(url, use, timeout)

    def read_range(self, url: str, offset: int, size: int, timeout: float, expected_bytes: int | None = None) -> bytes:
        async def use(answer: _Answer) -> bytes:
            whole = answer.status == 200
            first, last, total = (0, None, answer.content_length) if whole else _content_range(answer)
            coding = answer.headers.get("Content-Encoding", "identity")
            if coding != "identity":
                raise NoRangesError(f"the server sends it in the coding {coding!r}, expected plain bytes")
            if total is not None and total < offset + size:
                raise DamagedError(f"{total} bytes, expected {offset + size} or more")
            if total is not None and expected_bytes is not None and total != expected_bytes:
                raise DamagedError(f"{total} bytes, expected {expected_bytes} as the manifest lists")
            if whole and (offset, total) != (0, size):
                raise NoRangesError(
                    "the server ignores the Range header and sends the whole file; use a node cache, "
                    "which downloads whole files, or a server that knows ranges"
                )
            if first != offset or (last is not None and last >= offset + size):
                raise ShortError(f"the server sent bytes {first}-{last} when asked for {offset}-{offset + size - 1}")
            data = await answer.read(size)
            if len(data) > size:
                raise ShortError(f"the server sent more than the {size} bytes asked for")
            if len(data) != size:
                raise ShortError(f"{len(data)} of {size} bytes")
            return data

        if size == 0:
            return b""
        return self._get(url, use, timeout, f"{offset}-{offset + size - 1}")

    def names(self, url: str, timeout: float) -> list[str]:
        folder = urlsplit(url)._replace(query="", fragment="").geturl().rstrip("/") + "/"
        links = self._call(timeout, "ls", folder, detail=False)
        below = (unquote(link[len(folder) :]) for link in links if link.startswith(folder))
        return sorted({name for name in below if name and not re.search(r"[/?#]", name)})

    def download(self, url: str, handle: BinaryIO, limit: int, timeout: float) -> None:
        """The whole file in one piece, for servers without ranges. Raises ``DamagedError`` for more than ``limit``
        bytes."""

        async def use(answer: _Answer) -> None:
            handle.seek(0)
            async for data in answer.chunks():
                if handle.tell() + len(data) > limit:
                    raise DamagedError(f"more than the {limit} bytes that the manifest lists")
                write_at(handle, data, handle.tell())
                handle.seek(len(data), os.SEEK_CUR)

        self._get(url, use, timeout)


class _Answer:
    """An answer over http whose clock starts again with all that comes of it."""

    def __init__(self, answer: Any, clock: asyncio.Timeout, timeout: float) -> None:
        self._answer, self._clock, self._timeout = answer, clock, timeout
        self.status, self.headers, self.content_length = answer.status, answer.headers, answer.content_length

    async def chunks(self) -> AsyncIterator[bytes]:
        now = asyncio.get_running_loop().time
        started, received = now(), 0
        async for data in self._answer.content.iter_chunked(_CHUNK):
            received += len(data)
            slowest = started + self._timeout + received / SLOWEST  # a trickle is no progress
            self._clock.reschedule(min(now() + self._timeout, slowest))
            yield data

    async def read(self, limit: int) -> bytes:
        """All of it, and no more than is needed to see that it is longer than ``limit``."""
        data = bytearray()
        async for chunk in self.chunks():
            data += chunk
            if len(data) > limit:
                break
        return bytes(data)


def write_at(handle: BinaryIO, data: bytes, offset: int) -> None:
    """Write all of ``data``. Raises ``DiskError``."""
    try:
        written = 0
        while written < len(data):  # a disk that is nearly full takes a part
            written += os.pwrite(handle.fileno(), data[written:], offset + written)
    except OSError as error:
        raise DiskError(
            f"its copy on this node cannot be written ({error.strerror}); free that disk or leave the cache out"
        ) from error


def _content_range(answer: Any) -> tuple[int, int, int | None]:
    """First and last byte of an answer and the size of its file, as its Content-Range says; ``0, -1`` for none."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if found is None and answer.status == 416:
        raise DamagedError("the server holds no such range of it")
    if found is None:
        raise ShortError(f"status {answer.status} with Content-Range {answer.headers.get('Content-Range')!r}")
    first, last, total = found.groups()
    return int(first or 0), int(last or -1), None if total == "*" else int(total)


def _within(timeout: float, call: Callable[[], Any]) -> Any:
    """``call()``, waited for that long. A driver that is stuck keeps a thread of its own, which ends with the
    process."""
    result: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result.append(call())
        except BaseException as error:  # raised again below, in the thread that asked
            failure.append(error)

    thread = Thread(target=work, daemon=True, name="storage")
    thread.start()
    thread.join(timeout)
    if failure:
        raise failure[0]
    if not result:
        raise TimeoutError(f"no answer within {timeout:g} s")
    return result[0]
