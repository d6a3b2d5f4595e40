"""One part of a build: items are read ahead in threads, encoded in batches, and written to a sealed folder.

part-000012/  shard-000012-000000.tar, .tar.idx, ...   named as in the data set
              part.json       what is in them and of which raw files, what was left out and why, statistics, encoders
              manifest.json   size and sha256 of the files
"""

import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic takes the one of typing from Python 3.12 on

from stagecoach.data.building.item_files import Described, describe_items
from stagecoach.data.building.jobs import BuildJob, RawError, RawItem
from stagecoach.data.building.partition import Part
from stagecoach.data.files import (
    check_directory,
    describe_files,
    seal_directory,
    sync_directory,
    temporary_name,
    write_json,
)
from stagecoach.data.format.schema import NotFiniteError
from stagecoach.data.format.shards import ShardEntry, ShardWriter, index_path
from stagecoach.data.local_files import DamagedError
from stagecoach.data.locks import TAKEN
from stagecoach.data.reading import Count, not_finite, read_json

PART = "part.json"


class Skipped(TypedDict):
    """An item that was left out, and why."""

    key: str
    reason: str


class PartRecord(TypedDict):
    """``part.json``."""

    part: str
    split: str
    job: str
    samples: Count
    shards: list[ShardEntry]
    raw_files: Described
    statistics: dict[str, Any]
    skipped: list[Skipped]
    encoders: dict[str, dict[str, Any]] | None


def read_record(folder: Path) -> PartRecord:
    """``part.json`` of a part. Raises ``DamagedError``."""
    return read_json(folder / PART, PartRecord)


def read_part(folder: Path, job_hash: str, hashes: bool = True) -> PartRecord:
    """What ``part.json`` of a sealed part says. ``hashes`` reads its files to the end.

    Raises ``DamagedError`` naming the file that is missing or not as it was written, or where it is of another build.
    """
    manifest = check_directory(folder, hashes)
    part = read_record(folder)
    whole = {PART, *part_files(part)} == set(manifest["files"])
    if not whole or part["job"] != job_hash or part["part"] != folder.name:
        raise DamagedError(f"{folder}: a part of another build or of another number; remove it and start again")
    return part


def part_files(part: PartRecord) -> list[str]:
    """Names of the tars and indices of a part."""
    tars = [Path(shard["name"]) for shard in part["shards"]]
    return [str(path) for tar in tars for path in (tar, index_path(tar))]


class PartWriter:
    """Writes parts below ``folder``. ``encoders`` are those of the job, once it was started, else None."""

    def __init__(self, job: BuildJob, folder: Path, job_hash: str, max_shard_bytes: int, readers: int) -> None:
        self.job, self.folder, self.job_hash = job, folder, job_hash
        self.max_shard_bytes, self.readers = max_shard_bytes, readers
        self.encoders: Mapping[str, Any] | None = None
        self.samples = 0

    def write(self, part: Part, bad: dict[str, str], skip_bad: bool) -> Iterator[None]:
        """Make a part; gives control back after each of its items. ``bad`` says by key which items are left out and
        why; an item that turns out to be bad is added where ``skip_bad`` allows it, else its ``RawError`` is raised.

        The part has its name when the iteration ends. Of one that does not end, or is overtaken by another worker that
        makes the same part, nothing remains.
        """
        temporary = temporary_name(self.folder / part.name)
        temporary.mkdir()
        try:
            written = yield from self._write(temporary, part, bad, skip_bad)
            sync_directory(self.folder)
            self.samples += written
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write(self, folder: Path, part: Part, bad: dict[str, str], skip_bad: bool) -> Generator[None, None, int]:
        statistics, written = self.job.statistics(), 0
        raw = describe_items(self.job, part.items, self.readers)  # before they are read: a later change shows
        with (
            ShardWriter(
                folder, self.job.schema, prefix=part.name.replace("part", "shard"), max_bytes=self.max_shard_bytes
            ) as writer,
            closing(self._prepared([item for item in part.items if item.key not in bad])) as prepared,
        ):
            yield from (None for item in part.items if item.key in bad)
            group: list[tuple[RawItem, Any]] = []
            for item, ready in prepared:
                if isinstance(ready, RawError):
                    if not skip_bad:
                        raise ready
                    bad[item.key] = str(ready)
                    yield
                    continue
                group.append((item, ready))
                if len(group) == self.job.together:
                    written += self._encode(group, writer, statistics, bad if skip_bad else None)
                    yield from (None for _ in group)
                    group = []
            if group:
                written += self._encode(group, writer, statistics, bad if skip_bad else None)
                yield from (None for _ in group)
        self._seal(
            folder,
            part,
            {
                "part": part.name,
                "split": part.split,
                "job": self.job_hash,
                "samples": written,
                "shards": writer.shards,
                "raw_files": raw,
                "statistics": statistics.as_dict(),
                "skipped": [{"key": item.key, "reason": bad[item.key]} for item in part.items if item.key in bad],
                "encoders": dict(self.encoders or {}) if written else None,
            },
        )
        return written

    def _encode(
        self, group: list[tuple[RawItem, Any]], writer: ShardWriter, statistics: Any, bad: dict[str, str] | None
    ) -> int:
        """How many samples of the group were written; one that is not finite is added to ``bad``, if that is there."""
        items, ready, written = [item for item, _ in group], [prepared for _, prepared in group], 0
        for item, sample in zip(items, self.job.encode(items, ready), strict=True):
            try:
                writer.add(item.key, sample.arrays, sample.meta)
            except NotFiniteError as error:
                if bad is None:
                    raise RawError(str(error)) from error
                bad[item.key] = str(error)
                continue
            statistics.add(sample)
            written += 1
        return written

    def _seal(self, temporary: Path, part: Part, content: PartRecord) -> None:
        if bad := not_finite(content["statistics"]):
            raise RawError(
                f"{part.name}: the sum {bad!r} of its items {part.items[0].key} to {part.items[-1].key} is not finite, "
                "expected numbers; look for one of them that holds none"
            )
        write_json(temporary / PART, content)
        files = describe_files(temporary, [PART])
        for shard in content["shards"]:  # hashed as they were written
            index = index_path(temporary / shard["name"])
            files[shard["name"]] = {"bytes": shard["bytes"], "sha256": shard["sha256"]}
            files[index.name] = {"bytes": index.stat().st_size, "sha256": shard["idx_sha256"]}
        seal_directory(temporary, files)
        try:
            os.rename(temporary, self.folder / part.name)
        except OSError as error:
            if error.errno not in TAKEN:
                raise

    def _prepared(self, items: list[RawItem]) -> Generator[tuple[RawItem, Any], None, None]:
        """Items in their order with what was read of each, or with the ``RawError`` that befell it."""
        return ahead(items, self.job.prepare, 2 * self.job.together, self.readers)


def ahead(
    items: Iterable[RawItem], function: Callable[[RawItem], Any], limit: int, threads: int
) -> Generator[tuple[RawItem, Any], None, None]:
    """Each item with the result of ``function`` on it, or the ``RawError`` that it raised, in order. At most ``limit``
    calls are ahead of the one whose result is waited for, in ``threads`` threads."""
    waiting = iter(items)
    pending: deque[tuple[RawItem, Future[Any]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            pending.extend((item, pool.submit(function, item)) for item in islice(waiting, limit))
            while pending:
                item, future = pending.popleft()
                try:
                    result = future.result()
                except RawError as error:
                    result = error
                with suppress(StopIteration):
                    following = next(waiting)
                    pending.append((following, pool.submit(function, following)))
                yield item, result
        finally:
            pool.shutdown(cancel_futures=True)
