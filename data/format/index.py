"""The rows of an index file: read strictly where a manifest proves them, and line by line where nothing does."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from isal.isal_zlib import crc32  # zlib's, at 30 GB/s a core instead of 1.7: each sample is checked when read

from stagecoach.data.format.shards import FORMAT, ShardEntry, index_path
from stagecoach.data.local_files import DamagedError, LocalFile
from stagecoach.data.stores.storage import LocalStorage

Row = dict[str, Any]
"""``key``, ``members`` (name -> [offset, size, crc32]), ``sizes`` where the index was made with a schema."""


def is_row(row: Any) -> bool:
    """Whether this has the form of a row; says nothing of its content."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("key"), str)
        and isinstance(row.get("members"), dict)
        and bool(row["members"])
        and all(_is_extent(extent) for extent in row["members"].values())
    )


def _is_extent(extent: Any) -> bool:
    return isinstance(extent, list) and len(extent) == 3 and all(type(n) is int and 0 <= n < 2**63 for n in extent)


def read_index(directory: Path, entry: ShardEntry) -> dict[str, Any]:
    """The index of a shard, after it was found to be the one that the manifest lists. Raises ``DamagedError``."""
    tar = directory / entry["name"]
    path, again = index_path(tar), "make it again with build_shards.py repair"
    try:
        content = LocalStorage(directory).read(path.name)
    except DamagedError as error:
        raise DamagedError(f"{error}, expected the index of {tar.name} next to it; {again}") from error
    if sha256(content).hexdigest() != entry["idx_sha256"]:
        raise DamagedError(
            f"{path}: content differs from the sha256 in the manifest; it was damaged or belongs to "
            f"another tar, {again}"
        )
    try:
        index = json.loads(content)
        found = index["version"], index["tar"], index["bytes"], len(index["samples"])
        bad = next((row for row in index["samples"] if not is_row(row)), None)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path}: not an index ({type(error).__name__}: {error}); {again}") from error
    if bad is not None:
        raise DamagedError(f"{path}: {str(bad)[:120]} is not the row of a sample, expected key and members; {again}")
    expected = FORMAT, entry["name"], entry["bytes"], entry["samples"]
    if found != expected:
        raise DamagedError(
            f"{path}: version, tar, bytes and samples are {found}, expected {expected}; it belongs to "
            f"another tar, {again}"
        )
    return index


def salvage_rows(tar: Path) -> list[Row] | None:
    """What can still be read of an index that nothing proves, each key once; None where no row can. A row is one line
    of the file, so damage to one leaves the others."""
    try:
        lines = LocalStorage(tar.parent).read(index_path(tar).name).split(b"\n")
    except DamagedError:
        return None
    rows: dict[str, Row] = {}
    for line in lines:
        try:
            row = json.loads(line.rstrip(b","))
        except (ValueError, RecursionError):
            continue
        if is_row(row):
            rows.setdefault(row["key"], row)
    return list(rows.values()) or None


def read_row(file: LocalFile, row: Row, where: str) -> dict[str, memoryview]:
    """The members of a sample by their extents (offset, size, crc32) in the tar. Raises ``DamagedError`` for bytes that
    are not there or whose crc32 is another, ``UnreachableError`` for a file system that gives no answer."""
    members = {}
    for name, (offset, size, crc) in row["members"].items():
        data = file.read(offset, size) if offset + size <= file.size else b""
        if len(data) != size:
            raise DamagedError(
                f"{where}: {name!r} of {size} bytes at offset {offset} does not lie in the tar; it was "
                f"cut, copy or build it again"
            )
        if crc32(data) != crc:
            raise DamagedError(
                f"{where}: crc32 of {name!r} differs from the index; the tar was damaged after it was "
                f"built, copy or build it again"
            )
        members[name] = memoryview(data)
    return members
