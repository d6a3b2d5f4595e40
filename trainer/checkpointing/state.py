"""What a checkpoint says about the training it belongs to, and whether another run may go on from it."""

from dataclasses import dataclass, field
from pathlib import Path

from stagecoach.data.files import check_directory
from stagecoach.data.reading import Count, DamagedError, read_json
from stagecoach.data.weight_files import STATE

OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class TrainingState:
    """``training_state.json``: ``step`` optimizer steps are done. What must not differ on resume is compared."""

    family: str
    size: str
    stage: Count
    step: Count
    world_size: Count
    zero: Count
    precision: str
    frozen: str
    global_batch: Count
    seed: Count
    shards: str
    """Fingerprint of the training shards: the order is a function of it."""
    started_from: str | None
    """sha256 of the adapter that the stage started from."""
    skipped: Count = 0
    bad: tuple[Count, ...] = ()
    """Indices of the samples that were found damaged so far."""
    adam_steps: Count = 0
    """Updates that Adam has made: skipped steps are none."""
    loss_scale: dict[str, float] = field(default_factory=dict)
    """Of fp16, by the names of DeepSpeed's loss scaler."""
    order: Count = 1
    """``SamplePlan.order_version``: the same samples may have come in another order before."""


def read_state(directory: Path) -> TrainingState:
    """State of an undamaged checkpoint. Raises ``DamagedError``."""
    check_directory(directory)
    if not (directory / OPTIMIZER).is_dir():
        raise DamagedError(
            f"{directory}: holds no {OPTIMIZER}/, so an earlier version wrote it, which cannot be gone on from; start "
            "the stage again with --resume never"
        )
    return read_json(directory / STATE, TrainingState)


def check_resumable(directory: Path, found: TrainingState, expected: TrainingState) -> None:
    """Raise ``ValueError`` where going on from ``found`` would not continue the same training. World size, ZeRO stage
    and micro-batch may differ; the order of samples, the weights' origin and the family may not."""
    if found.order != expected.order:
        raise ValueError(
            f"{directory}: its samples came in order {found.order} of buckets and weighted sets, expected order "
            f"{expected.order} of this version, in which some would come again and others not at all; go on with the "
            "version that wrote it, or start the stage again with --resume never"
        )
    for name in ("family", "size", "stage", "global_batch", "seed", "shards", "started_from", "precision", "frozen"):
        if getattr(found, name) != getattr(expected, name):
            raise ValueError(
                f"{directory}: was trained with {name} {getattr(found, name)}, this run has "
                f"{getattr(expected, name)}; restore it, or start the stage again with --resume never"
            )
