"""The folder of a run: who writes it, and what an earlier run has left in it."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from stagecoach.data.locks import STALE, DirectoryLock, HeldError, describe
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.claim import Claim
from stagecoach.trainer.distributed import World, on_first

log = logging.getLogger(__name__)

LOCK = "lock"
EARLIER = "earlier"
JOB = "slurm_job"


def stage_directory(run: str | Path, stage: int) -> Path:
    return Path(run) / f"stage{stage}"


def adapter_directory(run: str | Path, stage: int) -> Path:
    return stage_directory(run, stage) / "adapter"


def checkpoint_store(run: str | Path, stage: int, keep: int) -> CheckpointStore:
    return CheckpointStore(stage_directory(run, stage) / "checkpoints", keep)


class RunFolder:
    """The lock on a run's folder, which rank 0 holds for all. A folder that is not there yet is made and locked when
    the run begins to write: one that cannot start leaves nothing behind."""

    def __init__(self, path: Path, world: World) -> None:
        self.path, self.world = path, world
        self.lock: DirectoryLock | None = None

    def begin(self) -> None:
        """Make the folder, and lock it where that has not been done. Every rank calls it."""
        on_first(self.world, self._take, True)

    def enter(self) -> None:
        """Lock the folder where it is there. Every rank calls it."""
        on_first(self.world, self._take, False)

    @property
    def claim(self) -> Claim | None:
        """Rank 0's, once the folder is locked; the others hold none."""
        return None if self.lock is None else Claim(str(self.lock.path), self.lock.token)

    def check(self) -> None:
        """Raise ``LostFolderError`` on rank 0 where another run has taken the lock."""
        if self.claim is not None:
            self.claim.check()

    def leave(self) -> None:
        if self.lock is not None:
            self.lock.release()

    def _take(self, make: bool) -> None:
        if make:
            self.path.mkdir(parents=True, exist_ok=True)
        if self.lock is not None or not self.path.is_dir():
            return
        lock = DirectoryLock(self.path / LOCK)
        try:
            lock.acquire(refuse=True, on_wait=self._say)
        except HeldError as error:
            raise ValueError(
                f"{self.path}: another run writes to this folder ({describe(error.owner)}), expected one at a time; "
                "stop it, or choose another folder with --run"
            ) from None
        self.lock = lock

    def _say(self, owner: dict) -> None:
        log.info(f"{self.path} is locked by {describe(owner)}; waiting up to {STALE:g} s for a sign of life of it")


def mark_job(run: Path, stage: int) -> None:
    """Note by which Slurm job a stage was started from nothing."""
    if job := os.environ.get("SLURM_JOB_ID"):
        folder = stage_directory(run, stage)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JOB).write_text(job)


def is_requeued(run: Path, stage: int) -> bool:
    """Whether this process is a later start of the Slurm job that began a stage from nothing. ``--resume never`` is for
    the first start only: what lies there is that job's own work."""
    mark = stage_directory(run, stage) / JOB
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return restarts != "0" and mark.is_file() and mark.read_text() == os.environ.get("SLURM_JOB_ID")


@contextmanager
def run_folder(path: str | Path, world: World) -> Iterator[RunFolder]:
    """The folder of a run, locked while the block runs where it is there or is begun."""
    folder = RunFolder(Path(path), world)
    try:
        folder.enter()
        yield folder
    finally:
        folder.leave()


def set_aside(run: Path, stage: int, step: int, steps: int) -> Path | None:
    """Move what an earlier run of a stage has left beyond ``step``, from which it now goes on, to
    ``earlier/<date>/`` with copies of the run's records, so that it is never taken for the present; return that folder,
    or None where there is nothing. ``steps``: those of the stage. Called by one rank."""
    folder = stage_directory(run, stage)
    if step:
        store = checkpoint_store(run, stage, 1)
        moved = [store.path(found) for found in store.steps() if found > step]
        moved += [adapter_directory(run, stage)] if step < steps else []
    else:
        moved = [folder, run / "tb" / folder.name, run / "previews" / folder.name]
    moved = [path for path in moved if path.exists()]
    if not moved:
        return None
    aside = _dated(run / EARLIER)
    for name in ("recipe.yaml", "run.json", "metrics.jsonl"):
        if (run / name).is_file():
            shutil.copy2(run / name, aside / name)
    for path in moved:
        target = aside / path.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, target)
    names = ", ".join(str(path.relative_to(run)) for path in moved)
    log.warning(f"an earlier run of stage {stage} went beyond step {step}: its {names} now lie in {aside}")
    return aside


def _dated(parent: Path) -> Path:
    date, count = datetime.now().strftime("%Y-%m-%d_%H%M%S"), 1
    while True:
        path = parent / (date if count == 1 else f"{date}_{count}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            count += 1
        else:
            return path
