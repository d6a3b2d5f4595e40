"""What a stage starts from, and which checkpoint it goes on from."""

from __future__ import annotations

import re
from pathlib import Path

from stagecoach.data.files import MANIFEST
from stagecoach.data.paths import expand_path
from stagecoach.data.weight_files import CARD, STATE
from stagecoach.models.weights.opening import Weights, open_weights
from stagecoach.trainer.checkpointing.state import TrainingState, check_resumable, read_state
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.distributed import World, on_first
from stagecoach.trainer.run_folder import adapter_directory
from stagecoach.trainer.stage_plan import StagePlan

BASE = Path("base")
"""``--init base``: initial values instead of what the stages before have trained."""


def start_source(plan: StagePlan, init: Path | None) -> Path | None:
    """Where the weights lie that a stage starts from: what ``init`` names, without it the adapter of the stage before
    in the run; None is the base."""
    if init is not None:
        return None if init == BASE else init
    return adapter_directory(plan.recipe.run, plan.index - 1) if plan.index > 1 else None


def open_start(plan: StagePlan, source: Path, init: Path | None) -> Weights:
    """The weights in ``source``, which are of the stage before or, with ``init``, of this one (a warm start). Raises
    ``ValueError`` and ``DamagedError`` as ``open_weights``."""
    index = plan.index
    weights = open_weights(
        source,
        family=plan.family.name,
        size=plan.recipe.size,
        stages=[stage for stage in (index - 1, index if init is not None else 0) if stage],
        purpose=f" to start stage {index}; give the right one with --init",
    )
    try:
        plan.family.check_start(plan.config, weights.config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return weights


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
