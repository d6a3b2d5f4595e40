"""Checkpoints: the current trainables, the optimizer and the position; atomic, hashed, trainable-only.

``checkpoint_<step>/`` holds ``model.safetensors`` (fp32 master weights by the network's names), ``ema.safetensors``
where an average is kept, ``engine/`` (DeepSpeed's own shards), ``training_state.json``, ``config.yaml`` and
``manifest.json``.
"""

import json
import logging
import os
import re
import shutil
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from stagecoach.data.files import (
    TEMPORARY,
    DamagedError,
    check_directory,
    commit_directory,
    describe_files,
    list_files,
    seal_directory,
    temporary_name,
    write_json,
)
from stagecoach.trainer.adapter import load_tensors
from stagecoach.trainer.distributed import World, on_first, together
from stagecoach.trainer.ema import Ema
from stagecoach.trainer.engine import full_parameters

log = logging.getLogger(__name__)

TAG = "engine"
WEIGHTS = "model.safetensors"
AVERAGE = "ema.safetensors"
STATE = "training_state.json"


@dataclass(frozen=True)
class TrainingState:
    """``training_state.json``: ``step`` optimizer steps are done. What must not differ on resume is compared."""

    family: str
    size: str
    stage: int
    step: int
    world_size: int
    zero: int
    precision: str
    frozen: str
    global_batch: int
    seed: int
    shards: str
    """Fingerprint of the training shards: the order is a function of it."""
    started_from: str | None
    """sha256 of the adapter that the stage started from."""
    skipped: int = 0
    bad: tuple[int, ...] = ()
    """Indices of the samples that were found damaged so far."""


class CheckpointStore:
    """The checkpoints of one stage of one run."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self.keep = keep

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

    def save(
        self,
        engine: deepspeed.DeepSpeedEngine,
        parameters: dict[str, nn.Parameter],
        state: TrainingState,
        config: str,
        ema: Ema | None,
        world: World,
    ) -> Path:
        """Write a checkpoint and drop the oldest beyond ``keep``. Every rank calls it."""
        final = self.path(state.step)
        temporary = Path(on_first(world, self._prepare, final))
        # ZeRO-1 and 2 can be converted to another world size only if this entry is there.
        client_state = {} if state.zero == 3 else {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        engine.save_checkpoint(
            str(temporary), tag=TAG, client_state=client_state, save_latest=False, exclude_frozen_parameters=True
        )
        for file, weights in ((WEIGHTS, nullcontext()), (AVERAGE, ema.swapped_in() if ema else None)):
            if weights is None:
                continue
            with weights:
                tensors = full_parameters(engine, parameters, keep=world.is_first)
            together(world, _attempt(save_file, tensors, temporary / file) if world.is_first else None)
        on_first(world, self._describe, temporary, state, config)
        seal_together(temporary, world)
        on_first(world, self._commit, temporary, final)
        return final

    def _prepare(self, final: Path) -> str:
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in self.directory.glob(f"{TEMPORARY}*"):
            # Only one run owns this directory, so what an earlier, killed one left half-written is nobody's.
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = temporary_name(final)
        temporary.mkdir()
        return str(temporary)

    def _describe(self, temporary: Path, state: TrainingState, config: str) -> None:
        write_json(temporary / STATE, asdict(state))
        (temporary / "config.yaml").write_text(config)

    def _commit(self, temporary: Path, final: Path) -> None:
        commit_directory(temporary, final)
        for step in self.steps()[: -self.keep]:
            shutil.rmtree(self.path(step))


def seal_together(directory: Path, world: World) -> None:
    """Seal a directory that all ranks see; each hashes its part of the files, since optimizer shards are large."""
    names = on_first(world, list_files, directory)
    parts: list[dict] = [{} for _ in range(world.size)]
    dist.all_gather_object(parts, describe_files(directory, names[world.rank :: world.size]))
    on_first(world, seal_directory, directory, {k: v for part in parts for k, v in part.items()})


def read_state(directory: Path) -> TrainingState:
    """State of an undamaged checkpoint. Raises ``DamagedError``."""
    check_directory(directory)
    try:
        return TrainingState(**json.loads((directory / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DamagedError(f"{directory / STATE}: not a training state ({error})") from error


def check_resumable(directory: Path, found: TrainingState, expected: TrainingState) -> None:
    """Raise ``ValueError`` where going on from ``found`` would not continue the same training. World size, ZeRO stage
    and micro-batch may differ; the order of samples, the weights' origin and the family may not."""
    for name in ("family", "size", "stage", "global_batch", "seed", "shards", "started_from", "precision", "frozen"):
        if getattr(found, name) != getattr(expected, name):
            raise ValueError(
                f"{directory}: was trained with {name} {getattr(found, name)}, this run has "
                f"{getattr(expected, name)}; restore it, or start the stage again with --resume never"
            )


def needs_universal(found: TrainingState, expected: TrainingState) -> bool:
    """Whether DeepSpeed's shards must be converted first, because they were written by another layout."""
    return (found.world_size, found.zero) != (expected.world_size, expected.zero)


def to_universal(directory: Path, world: World) -> Path:
    """Convert the DeepSpeed shards of a checkpoint to the universal layout, on rank 0; return its folder.

    It lies next to the checkpoint, since a sealed directory is never changed.
    """
    target = directory.parent / f"universal_{directory.name}"

    def convert() -> None:
        if target.exists():
            # Left by a run that died while it was loading.
            shutil.rmtree(target)
        from deepspeed.checkpoint import ds_to_universal

        temporary = temporary_name(target)
        ds_to_universal.main(
            Namespace(
                input_folder=str(directory / TAG),
                output_folder=str(temporary / TAG),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=False,
            )
        )
        (temporary / "latest_universal").write_text(TAG)
        os.replace(temporary, target)

    on_first(world, convert)
    return target


def restore(
    engine: deepspeed.DeepSpeedEngine,
    network: nn.Module,
    directory: Path,
    universal: bool,
    ema: Ema | None,
    world: World,
) -> None:
    """Load weights, optimizer and average of a checkpoint that ``read_state`` has proved. Every rank calls it.

    DeepSpeed loads without its own strictness (frozen tensors are not in the file), so names and shapes are compared
    with ``model.safetensors`` first: a difference raises ``ValueError``.
    """
    expected = {name for name, p in network.named_parameters() if p.requires_grad}
    together(world, _attempt(load_tensors, directory / WEIGHTS, network, expected, compare_only=True))
    source = to_universal(directory, world) if universal else directory
    declared = [
        {key: value for key, value in group.items() if key not in ("params", "step")}
        for group in engine.optimizer.param_groups
    ]
    path, _ = engine.load_checkpoint(str(source), tag=TAG, load_module_strict=False)
    if path is None:
        raise DamagedError(f"{source}: DeepSpeed found no checkpoint under the tag {TAG!r}")
    if universal:
        _separate_groups(engine, declared)
        # As large as the checkpoint itself, and made again whenever it is needed.
        dist.barrier()
        on_first(world, shutil.rmtree, source)
    if ema is not None:
        if not (directory / AVERAGE).is_file():
            raise ValueError(
                f"{directory}: holds no {AVERAGE} but the recipe keeps an average; remove `ema` or start "
                "the stage again with --resume never"
            )
        _restore_average(network, directory / AVERAGE, ema)


def _separate_groups(engine: deepspeed.DeepSpeedEngine, declared: list[dict]) -> None:
    """Undo what loading the universal layout mixes up: DeepSpeed gives every group the settings of the first one, and
    under ZeRO-3 all of them one step counter, which torch's AdamW then advances once per group."""
    for group, settings in zip(engine.optimizer.param_groups, declared, strict=True):
        group.update(settings)
    for state in engine.optimizer.optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


def _restore_average(network: nn.Module, file: Path, ema: Ema) -> None:
    from deepspeed.utils import safe_set_full_fp32_param
    from safetensors import safe_open

    with ema.swapped_in(), safe_open(file, framework="pt") as handle:
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                safe_set_full_fp32_param(parameter, handle.get_tensor(name).to(ema.shadows[0].device))


def _attempt(function, *args, **kwargs) -> Exception | None:
    try:
        function(*args, **kwargs)
    except (OSError, ValueError) as error:
        return error
    return None
