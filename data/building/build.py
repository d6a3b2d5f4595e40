"""From the items of a ``BuildJob`` to a data set of shards, by one process or by many, in one go or in several.

The items are cut into parts. A part is made by one worker, below a temporary name, sealed and renamed. Part p belongs
to worker p mod W; a worker that starts again, with any W, makes those that are missing or damaged. Whoever finds
all parts there makes the data set of them. Workers share nothing but the file system. The data set is the same for any
number of workers, restarts and kills.
"""

import os
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stagecoach.data.building.finish import finish
from stagecoach.data.building.jobs import BuildJob, RawError
from stagecoach.data.building.options import BuildOptions
from stagecoach.data.building.partition import Division, divide
from stagecoach.data.building.parts import Skipped
from stagecoach.data.building.worker import Worker
from stagecoach.data.building.worker_pool import run_worker_pool
from stagecoach.data.building.worker_rank import WorkerRank
from stagecoach.data.building.workspace import SKIPPED, Workspace, finished_splits
from stagecoach.data.format.shards import read_manifest
from stagecoach.data.progress import Track, untracked
from stagecoach.data.reading import parse_json, read_regular
from stagecoach.data.stores.storage import SMALL

READERS = max(min(os.cpu_count() or 1, 8), 1)


@dataclass
class BuildReport:
    """What a build made. Of this process and its workers alone tell ``encoded``, the samples made this time, and
    ``seconds``; all else is of the data set, and empty while parts of other workers (``missing_parts``) are not there
    yet. ``reasons`` counts the skipped items by kind of reason; ``more`` is the family's."""

    output: str
    finished: bool = True
    samples: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    skipped: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    encoded: int = 0
    seconds: float = 0.0
    missing_parts: int = 0
    message: str = ""

    def as_dict(self) -> dict[str, Any]:
        result = asdict(self)
        more = result.pop("more")
        speed = self.encoded / self.seconds if self.seconds else 0.0
        return {**result, **more, "samples_per_second": round(speed, 3)}


def build(
    job: BuildJob, output: Path, options: BuildOptions, track: Track = untracked, worker_rank: WorkerRank | None = None
) -> BuildReport:
    """Build the splits of ``job`` below ``output``, or this process's share of them. ``worker_rank``: by default as
    its launcher says.

    Raises ``RawError`` for the first bad item, unless ``options.skip_bad``: then it is listed in ``skipped.jsonl``;
    ``ValueError`` where the output is taken or was begun with other settings; ``WorkerError`` for a local worker that
    fails. Nothing is left in ``output`` where it fails before the first part is made, and no other worker may be at it.
    """
    started = time.monotonic()
    worker_rank = worker_rank or WorkerRank.detect()
    division = divide(job, options)
    if division.unusable and not options.skip_bad:
        raise division.unusable[0][1]
    _check_any(output, division)
    workspace, alone = Workspace(output, division), worker_rank.size == 1
    encoded = 0
    if workspace.begin(options.replace, alone):
        try:
            if workspace.goes_on():
                encoded = _work(job, workspace, options, worker_rank, track)
            report = _conclude(job, workspace, options, worker_rank)
        except BaseException:
            if alone:
                workspace.abandon()
            raise
    else:
        report = _describe(job, output, "the data set of this build is there already")
    report.encoded, report.seconds = encoded, time.monotonic() - started
    return report


def _work(job: BuildJob, workspace: Workspace, options: BuildOptions, worker_rank: WorkerRank, track: Track) -> int:
    if options.workers == 1:
        return Worker(job, workspace, worker_rank, options.skip_bad, READERS).run(track)
    worker_ranks = [worker_rank.inner(worker, options.workers) for worker in range(options.workers)]
    return run_worker_pool(
        _work_in_pool, (job, workspace.output, options, workspace.division.record), worker_ranks, track
    )


def _work_in_pool(
    job: BuildJob, output: Path, options: BuildOptions, record: dict[str, Any], worker_rank: WorkerRank, track: Track
) -> int:
    workspace = Workspace(output, divide(job, options, record))
    return Worker(job, workspace, worker_rank, options.skip_bad, max(READERS // options.workers, 2)).run(track)


def _conclude(job: BuildJob, workspace: Workspace, options: BuildOptions, worker_rank: WorkerRank) -> BuildReport:
    """Make the data set if all parts are there, else say how many are not."""
    try:
        missing = workspace.missing() if workspace.goes_on() else []
    except FileNotFoundError:
        missing = []  # finished by another worker in between
    if missing:
        return BuildReport(
            str(workspace.output),
            finished=False,
            missing_parts=len(missing),
            message=(
                f"{worker_rank} has made its parts; {len(missing)} of {len(workspace.division.parts)} are not there "
                "yet, and the worker that makes the last one finishes the data set (start again what was stopped)"
            ),
        )
    finish(workspace, job, options.skip_bad, READERS)
    if not workspace.is_finished():
        raise ValueError(
            f"{workspace.output}: the build was removed while it ran, expected {workspace.root} to stay; start it again"
        )
    return _describe(job, workspace.output)


def _describe(job: BuildJob, output: Path, message: str = "") -> BuildReport:
    report, statistics = BuildReport(str(output), message=message), {}
    for split in finished_splits(output):
        manifest = read_manifest(output / split)
        report.samples[split] = sum(shard["samples"] for shard in manifest.shards)
        report.shards[split] = len(manifest.shards)
        report.bytes += sum(shard["bytes"] for shard in manifest.shards)
        statistics[split] = manifest.statistics
    if (output / SKIPPED).exists():
        lines = enumerate(read_regular(output / SKIPPED, SMALL).split(b"\n"), 1)
        reasons = [
            parse_json(line, Skipped, f"{output / SKIPPED}:{number}")["reason"] for number, line in lines if line
        ]
        report.skipped = len(reasons)
        report.reasons = grouped(reasons)
    report.more = job.summary(statistics)
    return report


def grouped(reasons: list[str]) -> dict[str, int]:
    """How many reasons are of a kind, most first, by the first one of each kind in full."""
    examples: dict[str, str] = {}
    for reason in reasons:
        examples.setdefault(kind_of(reason), reason)
    return {examples[kind]: count for kind, count in Counter(map(kind_of, reasons)).most_common()}


def kind_of(reason: str) -> str:
    """What several reasons have in common: without the file in front, what was expected, numbers, names and quotes."""
    found = reason.partition(": ")[2] or reason
    found = re.split(r", expected|; ", found, maxsplit=1)[0]
    found = re.sub(r"\([^()]*\)|'[^']*'|\S*/\S*", "", found)
    return " ".join(re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "#", found).split())


def _check_any(output: Path, division: Division) -> None:
    if not division.parts:
        first = f"the first one left out: {division.unusable[0][1]}" if division.unusable else "the list is empty"
        raise RawError(f"{output}: no usable item among {len(division.unusable)}; {first}")
