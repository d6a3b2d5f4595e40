"""The raw files of items as they were when a part was made of them: where one has changed since, the part is stale.

A file is described by [name, bytes, mtime_ns]; a folder by [name, bytes of all files below, sha256 of their names,
bytes and times]; what is not there by [name, None, None]. Names are without folders: raw data may move.
"""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from stagecoach.data.building.jobs import BuildJob, RawItem
from stagecoach.data.files import sha256_json

Described = dict[str, list[list[Any]]]
"""By key of the item its files, in the order of ``BuildJob.files``."""


def describe_items(job: BuildJob, items: Iterable[RawItem], threads: int) -> Described:
    """What the files of ``items`` are now; what several of them share is looked at once."""
    files = {item.key: job.files(item) for item in items}
    paths = dict.fromkeys(path for listed in files.values() for path in listed)
    with ThreadPoolExecutor(threads) as pool:
        described = dict(zip(paths, pool.map(_describe, paths), strict=True))
    return {key: [described[path] for path in listed] for key, listed in files.items()}


def first_change(job: BuildJob, items: Iterable[RawItem], before: Mapping[str, Any], now: Described) -> str:
    """The first file of ``items`` that is not as it was, and its item; empty where all are."""
    for item in items:
        was, files = before.get(item.key) or [], job.files(item)
        if was != now[item.key]:
            changed = [path for path, described in zip(files, now[item.key], strict=True) if described not in was]
            return f"{changed[0]} of {item.key}" if changed else f"files of {item.key}"
    return ""


def _describe(path: Path) -> list[Any]:
    try:
        found = os.stat(path)
        if not S_ISDIR(found.st_mode):
            return [path.name, found.st_size, found.st_mtime_ns]
        below = [(str(inner.relative_to(path)), os.stat(inner)) for inner in path.rglob("*")]
    except OSError:
        return [path.name, None, None]
    files = sorted([name, stat.st_size, stat.st_mtime_ns] for name, stat in below if S_ISREG(stat.st_mode))
    return [path.name, sum(size for _, size, _ in files), sha256_json(files)]
