"""From a path or a URL to the storage that it names."""

import os
import re
from urllib.parse import unquote, urlsplit

from stagecoach.data.stores.storage import CacheOptions, LocalStorage, Storage

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://|file:", re.IGNORECASE)


def open_storage(
    location: str | os.PathLike[str], cache: CacheOptions | None = None, timeout: float = 60.0, retries: int = 5
) -> Storage:
    """The storage of a local path, a ``file:`` URL, ``http(s)://``, or another URL for which fsspec has a driver. What
    a driver needs (end point, keys) it takes from its environment and fsspec's configuration.

    ``timeout``: seconds for one attempt at one read; ``retries``: further attempts where the cause may pass. ``cache``
    is for remote locations; a local folder is read where it is. Nothing is asked of the location yet.

    Raises ``ValueError`` for a URL that has no driver, naming the package to install where that helps.
    """
    text = os.fspath(location)
    if "::" in text and "://" in text and not text.lower().startswith("http"):  # http://[::1]/ is no chain
        raise ValueError(
            f"{text!r} chains file systems, expected one location; whole shards are kept by the node cache, "
            f"see CacheOptions"
        )
    if _SCHEME.match(text) is None:
        return LocalStorage(text)
    if text[:5].lower() == "file:":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(
                f"{text!r} names the host {parts.netloc!r}, expected file:///folder; a file: URL is of "
                f"this machine only"
            )
        return LocalStorage(unquote(parts.path))
    if timeout <= 0 or retries < 0:
        raise ValueError(f"timeout is {timeout} s and retries is {retries}, expected more than 0 and at least 0")
    try:
        from stagecoach.data.stores.remote import RemoteStorage  # fsspec is not needed for local folders
    except ImportError as error:
        raise ValueError(
            f"{text.partition(':')[0]}: URLs are read through fsspec, which cannot be imported ({error}); "
            f"pip install fsspec aiohttp"
        ) from error
    remote = RemoteStorage(text, timeout, retries)
    if cache is None:
        return remote
    from stagecoach.data.stores.cached import CachedStorage

    return CachedStorage(remote, cache)
