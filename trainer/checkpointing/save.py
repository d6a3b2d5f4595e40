"""Writing a checkpoint: every rank its part, under a temporary name until all of it is there."""

import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import deepspeed
import torch.distributed as dist
from torch import nn

from stagecoach.data.files import (
    TEMPORARY,
    commit_directory,
    describe_files,
    list_files,
    seal_directory,
    temporary_name,
    write_json,
)
from stagecoach.data.tensors import save_tensors
from stagecoach.trainer.checkpointing.state import AVERAGE, STATE, TAG, WEIGHTS, TrainingState
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.distributed import World, attempt, on_first, together
from stagecoach.trainer.ema import Ema
from stagecoach.trainer.engine import full_parameters


def save_checkpoint(
    store: CheckpointStore,
    engine: deepspeed.DeepSpeedEngine,
    parameters: dict[str, nn.Parameter],
    state: TrainingState,
    config: str,
    ema: Ema | None,
    world: World,
) -> Path:
    """Write a checkpoint and drop the oldest beyond ``store.keep``. Every rank calls it."""
    final = store.path(state.step)
    temporary = Path(on_first(world, _prepare, final))
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
        together(world, attempt(save_tensors, tensors, temporary / file) if world.is_first else None)
    on_first(world, _describe, temporary, state, config)
    seal_together(temporary, world)
    on_first(world, _commit, store, temporary, final)
    return final


def _prepare(final: Path) -> str:
    directory = final.parent
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(f"{TEMPORARY}*"):
        # Only one run owns this directory, so what an earlier, killed one left half-written is nobody's.
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = temporary_name(final)
    temporary.mkdir()
    return str(temporary)


def _describe(temporary: Path, state: TrainingState, config: str) -> None:
    write_json(temporary / STATE, asdict(state))
    (temporary / "config.yaml").write_text(config)


def _commit(store: CheckpointStore, temporary: Path, final: Path) -> None:
    commit_directory(temporary, final)
    store.retire()


def seal_together(directory: Path, world: World) -> None:
    """Seal a directory that all ranks see; each hashes its part of the files, since optimizer shards are large."""
    names = on_first(world, list_files, directory)
    parts: list[dict] = [{} for _ in range(world.size)]
    dist.all_gather_object(parts, describe_files(directory, names[world.rank :: world.size]))
    on_first(world, seal_directory, directory, {k: v for part in parts for k, v in part.items()})
