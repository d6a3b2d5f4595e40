"""One worker of a build: it makes the parts that are its own by rule and not there yet."""

import logging
from collections.abc import Iterator

from stagecoach.data.building.item_files import describe_items, first_change
from stagecoach.data.building.jobs import BuildJob, RawError
from stagecoach.data.building.partition import Part
from stagecoach.data.building.parts import PartWriter, ahead, read_part
from stagecoach.data.building.worker_rank import WorkerRank, choose_device
from stagecoach.data.building.workspace import Workspace
from stagecoach.data.files import DamagedError
from stagecoach.data.progress import Track

_log = logging.getLogger(__name__)

PHASES = ("verifying", "checking", "encoding")
"""Titles of the bars: parts that an earlier run made, items of the others, and these again."""


class Worker:
    """``readers``: threads that check and read items."""

    def __init__(
        self, job: BuildJob, workspace: Workspace, worker_rank: WorkerRank, skip_bad: bool, readers: int
    ) -> None:
        self._job, self._workspace, self._worker_rank, self._skip_bad = job, workspace, worker_rank, skip_bad
        self._readers, self._bad = readers, dict[str, str]()
        division = workspace.division
        self._own = worker_rank.share(division.parts)
        self._writer = PartWriter(
            job, workspace.parts, division.record_hash, division.record["max_shard_bytes"], readers
        )

    def run(self, track: Track) -> int:
        """Make the parts, and return how many samples that were. It ends early, without an error, where the others have
        meanwhile finished the build. Raises ``RawError`` for the first bad item unless ``skip_bad``."""
        try:
            there = [part for part in self._own if (self._workspace.parts / part.name).exists()]
            missing = {part.number for part in self._own} - {part.number for part in there}
            missing |= {part.number for part in track(self._damaged(there), "verifying", len(there)) if part}
            parts = [part for part in self._own if part.number in missing]
            items = sum(len(part.items) for part in parts)
            for _ in track(self._check(parts), "checking", items):
                pass
            for _ in track(self._make(parts), "encoding", items):
                pass
        except FileNotFoundError:
            if self._workspace.goes_on():
                raise
        return self._writer.samples

    def _damaged(self, parts: list[Part]) -> Iterator[Part | None]:
        """Each part that has to be made again, else None: it is damaged, files that it was made of have changed, or
        items are missing that may not be."""
        changes: list[str] = []
        for part in parts:
            try:
                found = read_part(self._workspace.parts / part.name, self._workspace.division.record_hash)
            except DamagedError:
                again = True
            else:
                now = describe_items(self._job, part.items, self._readers)
                change = first_change(self._job, part.items, found["raw_files"], now)
                changes += [change] if change else []
                again = bool(change) or (bool(found["skipped"]) and not self._skip_bad)
            if again:
                self._workspace.discard(part)
            yield part if again else None
        if changes:
            _log.warning(
                "%s: %d of %d parts are made again, as files that they were made of have changed since: %s first",
                self._worker_rank,
                len(changes),
                len(parts),
                changes[0],
            )

    def _check(self, parts: list[Part]) -> Iterator[None]:
        """Look at all items before the first is encoded, so that a bad one is not found after hours."""
        items = [item for part in parts for item in part.items]
        for item, error in ahead(items, self._job.check, 8 * self._readers, self._readers):
            if isinstance(error, RawError):
                if not self._skip_bad:
                    raise error
                self._bad[item.key] = str(error)
            yield

    def _make(self, parts: list[Part]) -> Iterator[None]:
        for part in parts:
            if not self._workspace.goes_on():
                return
            if self._writer.encoders is None and any(item.key not in self._bad for item in part.items):
                if self._job.on_device:
                    choose_device(self._worker_rank)
                self._job.start()
                self._writer.encoders = dict(self._job.encoders())
            yield from self._writer.write(part, self._bad, self._skip_bad)
