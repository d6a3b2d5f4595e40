"""Which checkpoint a stage goes on from."""

from __future__ import annotations

import re
from pathlib import Path

from stagecoach.data.files import MANIFEST
from stagecoach.data.paths import expand_path
from stagecoach.trainer.adapter import CARD
from stagecoach.trainer.checkpointing.state import STATE, TrainingState, check_resumable, read_state
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.distributed import World, on_first


def find_checkpoint(
    store: CheckpointStore, resume: str, expected: TrainingState, steps: int, world: World
) -> tuple[Path, TrainingState] | None:
    """The checkpoint to go on from and its state, decided by rank 0 for all. ``steps``: those of the stage."""

    def find() -> tuple[Path, TrainingState] | None:
        if resume == "never":
            return None
        path = store.newest_valid() if resume == "auto" else named_checkpoint(resume, store)
        if path is None:
            return None
        state = read_state(path)
        check_resumable(path, state, expected)
        if state.step > steps:
            raise ValueError(
                f"{path}: {state.step} steps are done, but stage {state.stage} has only {steps}; set "
                f"stages.{state.stage}.steps to {state.step} or more, name an earlier checkpoint with --resume, or "
                "start the stage again with --resume never"
            )
        return path, state

    return on_first(world, find)


def named_checkpoint(resume: str, store: CheckpointStore | None = None) -> Path:
    """The checkpoint that ``--resume`` names. Raises ``ValueError`` that says what else lies there."""
    path = Path(expand_path(resume))
    is_checkpoint = re.fullmatch(r"checkpoint_\d+", path.name) and (path / MANIFEST).is_file()
    if is_checkpoint or (path / STATE).is_file():
        return path
    if not path.exists():
        found = "there is nothing"
    elif not path.is_dir():
        found = "a file"
    elif (path / CARD).is_file():
        found = "an adapter, which --init starts from"
    else:
        found = "a folder without " + STATE
    below = sorted((p.parent for p in path.glob(f"**/{STATE}")), key=lambda p: (str(p.parent), len(p.name), p.name))
    there = below or ([store.path(step) for step in store.steps()] if store else [])
    raise ValueError(
        f"--resume {resume}: no checkpoint ({found}), expected auto, never or the folder of a checkpoint; there are "
        + (", ".join(map(str, there)) or (f"none in {store.directory}" if store else "none there"))
    )
