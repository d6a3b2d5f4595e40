"""Annotates the items of an ``AnnotateJob`` by one process or by many, in one go or in several.

Item i belongs to worker i mod W. ``OUTPUT/.annotate/<key>.json`` says what was there before an item was begun, and
when it is finished what was written; so whoever starts again goes on behind the last finished item, and ends with the
same bytes for any number of workers. When all items are finished, ``annotations.json`` and metadata follow.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated as Described
from typing import Any

from stagecoach.data.annotation.job import Annotated, AnnotateJob, Unannotated
from stagecoach.data.building.build import grouped
from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.options import WORKERS, Argument
from stagecoach.data.building.worker_pool import run_worker_pool
from stagecoach.data.building.worker_rank import WorkerRank, choose_device
from stagecoach.data.building.workspace import read_record
from stagecoach.data.files import sha256_json, write_json
from stagecoach.data.progress import Track, untracked

ANNOTATIONS, RECORDS = "annotations.json", ".annotate"
PHASE = "annotating"


@dataclass(frozen=True)
class AnnotateOptions:
    """Options of all families. Raises ``ValueError``."""

    skip_bad: Described[
        bool, Argument("leave out what cannot be annotated and list it in annotations.json (default: the first stops)")
    ] = False
    redo: Described[
        bool, Argument("make again what was annotated with other models or settings; what was given stays")
    ] = False
    workers: Described[int, WORKERS] = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers {self.workers} found, expected at least 1")


@dataclass
class AnnotateReport:
    """``annotated``: items finished this time. All else is of all items; ``missing`` are those of other workers."""

    output: str
    annotated: int = 0
    items: int = 0
    missing: int = 0
    skipped: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def annotate(
    job: AnnotateJob, options: AnnotateOptions, track: Track = untracked, worker_rank: WorkerRank | None = None
) -> AnnotateReport:
    """Annotate this process's share of the items, and write the metadata if all are finished.

    Raises ``RawError`` for the first item that cannot be annotated (unless ``skip_bad``), ``ValueError`` for items that
    were annotated with other models or settings (unless ``redo``), ``WorkerError`` for a local worker that fails.
    """
    started = time.monotonic()
    worker_rank = worker_rank or WorkerRank.detect()
    items = job.items()
    state = {"models": dict(job.models()), "settings": job.settings()}
    crew = _Crew(job, sha256_json(state), options)
    crew.refuse_others(items)
    done = 0
    if crew.unfinished(worker_rank.share(items)):
        if options.workers == 1:
            done = _work(job, crew.state, options, worker_rank, track)
        else:
            ranks = [worker_rank.inner(worker, options.workers) for worker in range(options.workers)]
            done = run_worker_pool(_work, (job, crew.state, options), ranks, track, (PHASE,))
    report = AnnotateReport(str(job.output), annotated=done, items=len(items))
    records = {item.key: crew.finished(item) for item in items}
    report.missing = sum(record is None for record in records.values())
    if not report.missing:
        found = {key: record for key, record in records.items() if record}
        job.finish({key: _annotated(record) for key, record in found.items() if not record["skipped"]})
        described = {
            key: {name: record[name] for name in ("files", "numbers", "skipped") if record[name]}
            for key, record in found.items()
        }
        write_json(job.output / ANNOTATIONS, {**state, "items": described})
        reasons = [record["skipped"] for record in found.values() if record["skipped"]]
        report.skipped, report.reasons = len(reasons), grouped(reasons)
        if reasons and not options.skip_bad:
            raise RawError(f"{reasons[0]} (and {len(reasons) - 1} more); give --skip-bad to leave them out")
    report.seconds = time.monotonic() - started
    return report


def _work(job: AnnotateJob, state: str, options: AnnotateOptions, worker_rank: WorkerRank, track: Track) -> int:
    crew = _Crew(job, state, options)
    todo = crew.unfinished(worker_rank.share(job.items()))
    if todo:
        choose_device(worker_rank)
        job.start()
    for item in track(todo, PHASE, len(todo)):
        crew.make(item)
    return len(todo)


class _Crew:
    """What one worker does with items, by their records."""

    def __init__(self, job: AnnotateJob, state: str, options: AnnotateOptions) -> None:
        self._job, self.state, self._options = job, state, options
        self._folder = job.output / RECORDS

    def refuse_others(self, items: Sequence[Unannotated]) -> None:
        for item in items:
            record = self._record(item)
            if record and record["state"] != self.state and not self._options.redo:
                raise ValueError(
                    f"{self._path(item)}: {item.key} was annotated with other models or settings, expected the same to "
                    "go on; give --redo to make again what was annotated, or another --output"
                )

    def unfinished(self, items: Sequence[Unannotated]) -> list[Unannotated]:
        return [item for item in items if self.finished(item) is None]

    def finished(self, item: Unannotated) -> dict[str, Any] | None:
        """The record of an item that needs nothing more."""
        record = self._record(item)
        if not record or not record["finished"] or record["state"] != self.state or record["sources"] != _seen(item):
            return None
        if record["skipped"] and not self._options.skip_bad:
            return None
        return record if all((self._job.output / name).exists() for name in record["files"]) else None

    def make(self, item: Unannotated) -> None:
        record = self._record(item)
        given = record["given"] if record else [t for t in self._job.targets(item) if self._there(t)]
        begun = {
            "state": self.state,
            "sources": _seen(item),
            "given": given,
            "finished": False,
            "files": [],
            "entries": [],
            "numbers": {},
            "skipped": None,
        }
        write_json(self._path(item), begun)
        for target in self._job.targets(item):
            if target not in given:
                self._remove(target)
        try:
            made = self._job.annotate(item, frozenset(given))
        except RawError as error:
            if not self._options.skip_bad:
                raise
            made, begun["skipped"] = Annotated(), str(error)
            for target in self._job.targets(item):
                if target not in given:
                    self._remove(target)
        write_json(self._path(item), {**begun, **asdict(made), "finished": True})

    def _there(self, target: str) -> bool:
        return os.path.lexists(self._job.output / target)

    def _remove(self, target: str) -> None:
        path = self._job.output / target
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _path(self, item: Unannotated) -> Path:
        return self._folder / f"{item.key}.json"

    def _record(self, item: Unannotated) -> dict[str, Any] | None:
        record = read_record(self._path(item))
        return record if isinstance(record, dict) and "given" in record else None


def _seen(item: Unannotated) -> list[list[Any]]:
    stats = [(path, path.stat()) for path in item.sources]
    return [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _annotated(record: Mapping[str, Any]) -> Annotated:
    return Annotated(record["files"], record["entries"], record["numbers"])


def annotators(raw: Path) -> dict[str, Any]:
    """The models that annotated a raw data set, by role, for the manifest of its shards; none where nobody did."""
    record = read_record(raw / ANNOTATIONS)
    models = record.get("models", {}) if isinstance(record, dict) else {}
    return {f"annotate_{role}": entry for role, entry in models.items()}
