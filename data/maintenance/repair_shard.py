"""One tar and its index made whole again, from the samples whose bytes something proves.

Proof is the sha256 of the tar in the manifest, or else the crc32 of a sample in an index. Only where no record of the
tar is left at all (manifest and index are lost) a tar that reads to its end mark is taken as it is, if each sample fits
the schema. A tar that is known to differ from its sha256, and of which no crc32 is left, proves nothing.
"""

import os
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagecoach.data.format.decode import decode_sample
from stagecoach.data.format.index import Row, read_index, read_row, salvage_rows
from stagecoach.data.format.schema import SampleSchema, sample_sizes
from stagecoach.data.format.shards import ShardEntry, ShardTar, index_path, index_shard
from stagecoach.data.local_files import DamagedError, LocalFile, UnreachableError, is_file
from stagecoach.data.maintenance.scan import TarScan, scan_tar
from stagecoach.data.stores.storage import LocalStorage


@dataclass(frozen=True)
class RepairTask:
    """``source``: the file that holds the tar, ``name`` unless it has got another. ``entry``: what the manifest says,
    None where that is lost. ``without``: keys to be left out. ``scratch``: where new files go, None to write none."""

    directory: Path
    name: str
    source: str
    entry: ShardEntry | None
    schema: SampleSchema
    heads: bool
    without: frozenset[str]
    scratch: Path | None


@dataclass
class Repaired:
    """``keys`` are kept, ``dropped`` (key, reason) are not; a key of None stands for ``count`` samples whose keys are
    lost. ``entry`` is None where no sample is left, and where nothing was written. ``action``: what it took."""

    name: str
    action: str
    keys: list[str] = field(default_factory=list)
    dropped: list[tuple[str | None, str]] = field(default_factory=list)
    count: int = 0
    entry: ShardEntry | None = None

    @property
    def lost(self) -> int:
        """Samples that are gone."""
        return self.count + sum(key is not None for key, _ in self.dropped)


def repair_shard(task: RepairTask) -> Repaired:
    """Write what is needed into ``task.scratch`` and say what was done. Reads the tar at most twice, a sample at a
    time. Raises ``UnreachableError`` where its storage gives no answer, which proves nothing against a sample."""
    path = task.directory / task.source
    index = _trusted_index(task)
    rows: list[Row] = index["samples"] if index else salvage_rows(task.directory / task.name) or []
    if not is_file(path):
        return _gone(task, rows, f"{path} is missing")
    scan = scan_tar(path, task.schema, task.heads)
    with LocalFile(path) as file:
        kept, dropped = _sort_out(task, scan, rows, index, file)
        missing = 0
        if task.entry is not None and index is None and scan.sha256 != task.entry["sha256"]:
            missing = max(task.entry["samples"] - len(kept) - len(dropped), 0)
        if missing:
            dropped.append((None, "the tar was cut or damaged and no row of its index is left"))
        result = Repaired(task.name, "", [row["key"] for row in kept], dropped, missing)
        if not kept:
            return _gone(task, rows, "no sample of it is proven", result)
        intact = task.entry is None or scan.sha256 == task.entry["sha256"]
        unlike = task.entry is None and _unlike(kept, scan)
        if scan.error or not intact or unlike or (dropped and task.heads):
            result.action = "written again"
            if task.scratch:
                result.entry = _write_tar(task, kept, file)
        else:
            result.action = "indexed again" if task.source == task.name else "found under another name"
            if task.scratch:
                result.entry = _write_index(task, kept, dropped, scan, index)
                if task.source != task.name:
                    _bring(path, task.scratch / task.name)
    return result


def _trusted_index(task: RepairTask) -> dict[str, Any] | None:
    if task.entry is None:
        return None
    try:
        return read_index(task.directory, task.entry)
    except DamagedError:
        return None


def _gone(task: RepairTask, rows: list[Row], reason: str, result: Repaired | None = None) -> Repaired:
    result = result or Repaired(task.name, "")
    result.action = "removed"
    if not result.dropped:
        result.dropped = [(row["key"], reason) for row in rows] or [(None, reason)]
    if not any(key is not None for key, _ in result.dropped) and task.entry is not None:
        result.count = task.entry["samples"]
    return result


def _unlike(kept: list[Row], scan: TarScan) -> bool:
    """Whether the tar holds anything else than these samples."""
    return [(row["key"], row["members"]) for row in kept] != [(row["key"], row["members"]) for row in scan.rows]


def _sort_out(
    task: RepairTask, scan: TarScan, rows: list[Row], index: dict[str, Any] | None, file: LocalFile
) -> tuple[list[Row], list[tuple[str | None, str]]]:
    """The rows of all proven samples in the order of the tar, and the others with the reason."""
    path = task.directory / task.source
    listed, walked = {row["key"]: row for row in rows}, {row["key"]: row for row in scan.rows}
    intact = task.entry is not None and scan.sha256 == task.entry["sha256"]
    readable = task.entry is None and scan.error is None
    skipped = index.get("skipped", {}) if index else {}
    kept: list[Row] = []
    dropped: list[tuple[str | None, str]] = []
    if index is not None and not intact:
        walked = {key: row for key, row in walked.items() if key in listed}  # what else is here is of another tar
    elif index is None and intact and scan.error is None:
        listed = {}  # rows that nothing proves have nothing to say of a tar that is whole
    for key in {**walked, **listed}:
        row, found, where = listed.get(key), walked.get(key), f"{path}: sample {key!r}"
        if key in skipped:
            continue
        try:
            if key in task.without:
                raise DamagedError(f"{where}: another sample has this key")
            if found is not None and (intact or (readable and row is None)):
                if key in scan.bad:
                    raise DamagedError(scan.bad[key])
                members, sizes = found["members"], found["sizes"]
            elif row is not None:
                members = row["members"]
                if index is None and (found is None or _extents(found) != _extents(row)):
                    _check_names(file, row, where)
                arrays, _ = decode_sample(task.schema, read_row(file, row, where), where, task.heads)
                sizes = sample_sizes(task.schema, {name: array.shape for name, array in arrays.items()})
            else:
                raise DamagedError(
                    f"{where}: the tar differs from its sha256 or does not read to its end, and no "
                    f"crc32 of this sample is left"
                )
        except UnreachableError:
            raise
        except ValueError as error:
            dropped.append((key, str(error).removeprefix(f"{where}: ")))
            continue
        extra = {
            name: value
            for name, value in (row if row and index else {}).items()
            if name not in ("key", "sizes", "members")
        }
        kept.append({"key": key, "sizes": sizes, "members": members, **extra})
    return sorted(kept, key=lambda row: min(extent[0] for extent in row["members"].values())), dropped


def _extents(row: Row) -> dict[str, list[int]]:
    return {name: extent[:2] for name, extent in row["members"].items()}


def _check_names(file: LocalFile, row: Row, where: str) -> None:
    """A row that nothing proves may tell a wrong key: the header before the data must tell the same."""
    for name, (offset, _, _) in row["members"].items():
        header = file.read(max(offset - tarfile.BLOCKSIZE, 0), tarfile.BLOCKSIZE)
        try:
            found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except tarfile.HeaderError:
            found = None
        if found != f"{row['key']}.{name}":
            raise DamagedError(f"{where}: neither its index nor the header of {name!r} can be trusted")


def _write_tar(task: RepairTask, kept: list[Row], file: LocalFile) -> ShardEntry:
    # Names of others may be longer than USTAR allows.
    tar_format = tarfile.USTAR_FORMAT if task.heads else tarfile.PAX_FORMAT
    (task.scratch / task.name).unlink(missing_ok=True)  # of a first try, before a key was found twice
    tar = ShardTar(task.scratch / task.name, task.schema.dims, tar_format)
    try:
        for row in kept:
            tar.add(
                row["key"], read_row(file, row, f"{task.directory / task.source}: sample {row['key']!r}"), row["sizes"]
            )
            tar.samples[-1] = {**row, **tar.samples[-1]}
        return tar.finish()
    except BaseException:
        tar.abandon()
        raise


def _bring(path: Path, new: Path) -> None:
    new.unlink(missing_ok=True)
    try:
        os.link(path, new)
    except OSError:  # a file system without links
        shutil.copyfile(path, new)


def _write_index(
    task: RepairTask,
    kept: list[Row],
    dropped: list[tuple[str | None, str]],
    scan: TarScan,
    index: dict[str, Any] | None,
) -> ShardEntry:
    skipped = {**(index or {}).get("skipped", {}), **{key: reason for key, reason in dropped if key is not None}}
    entry = index_shard(task.scratch / task.name, task.schema.dims, scan.bytes, scan.sha256, kept, skipped)
    old = index_path(task.directory / task.name)
    new = index_path(task.scratch / task.name)
    if is_file(old) and LocalStorage(old.parent).read(old.name) == new.read_bytes():
        new.unlink()
    return entry
