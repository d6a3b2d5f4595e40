"""The checkpoints of one stage of one run: where they are, which is the newest intact one, how many are kept."""

import logging
import os
import re
import shutil
from pathlib import Path

from stagecoach.data.files import MANIFEST, DamagedError, temporary_name
from stagecoach.trainer.checkpointing.state import read_state
from stagecoach.trainer.claim import Claim

log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one stage of one run."""

    def __init__(self, directory: Path, keep: int, claim: Claim | None = None) -> None:
        self.directory = directory
        self.keep = keep
        self.claim = claim
        """To the folder of the run, which must still be ours when a checkpoint takes its name."""

    def path(self, step: int) -> Path:
        return self.directory / f"checkpoint_{step}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, finished or damaged, oldest first."""
        found = (re.fullmatch(r"checkpoint_(\d+)", p.name) for p in self.directory.glob("checkpoint_*"))
        return sorted(int(m.group(1)) for m in found if m)

    def newest_valid(self) -> Path | None:
        """The newest checkpoint that is what its manifest says; damaged ones are passed over. Raises ``DamagedError``
        where all are damaged, rather than starting again over them."""
        damaged = []
        for step in reversed(self.steps()):
            try:
                read_state(self.path(step))
            except DamagedError as error:
                damaged.append(str(error))
                log.warning("checkpoint skipped: %s", error)
            else:
                return self.path(step)
        if damaged:
            raise DamagedError(
                f"{self.directory}: none of {len(damaged)} checkpoints is intact; restore one, or "
                "remove them or pass --resume never to start the stage again"
            )
        return None

    def retire(self, newest: Path) -> None:
        """Remove those that were written first beyond ``keep``; their steps do not matter. ``newest`` has just been
        written, even where the clocks of hosts differ."""

        def written(step: int) -> tuple[bool, int, int]:
            path = self.path(step)
            manifest = path / MANIFEST  # the last file of a checkpoint
            return path == newest, (manifest.stat().st_mtime_ns if manifest.exists() else 0), step

        for step in sorted(self.steps(), key=written)[: -self.keep]:
            aside = temporary_name(self.path(step))
            try:
                os.rename(self.path(step), aside)
            except OSError as error:  # no reason to end a run whose newest checkpoint is safe
                log.warning("%s: stays, although %d are kept (%s)", self.path(step), self.keep, error.strerror or error)
            else:
                shutil.rmtree(aside, ignore_errors=True)
