"""Loading a checkpoint into an engine of any ZeRO stage and number of ranks."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import deepspeed
import torch
from torch import Tensor, nn

from stagecoach.data.files import DamagedError
from stagecoach.data.tensors import open_tensors
from stagecoach.data.weight_files import AVERAGE, WEIGHTS
from stagecoach.models.weights.network import load_tensors
from stagecoach.trainer.checkpointing.layout import MOMENTS, Fragment
from stagecoach.trainer.checkpointing.partition import (
    adam_states,
    find_fragments,
    set_adam_steps,
    set_loss_scaler_state,
)
from stagecoach.trainer.checkpointing.state import OPTIMIZER, TrainingState
from stagecoach.trainer.distributed import World, attempt, together
from stagecoach.trainer.ema import Ema
from stagecoach.trainer.engine import master_partitions, push_masters


def restore(
    engine: deepspeed.DeepSpeedEngine,
    network: nn.Module,
    directory: Path,
    state: TrainingState,
    ema: Ema | None,
    world: World,
) -> None:
    """Load weights, moments and average of a checkpoint that ``read_state`` has proved. Every rank calls it.

    What the recipe says of the optimizer (rates, betas, eps, weight decay) is not in a checkpoint and stays in force.

    Raises:
        ValueError: names or shapes differ from the network's, or an average is missing.
        DamagedError: the optimizer's state is incomplete.
    """
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    together(world, attempt(_compare, directory / WEIGHTS, network, set(parameters)))
    together(world, attempt(_load, engine, parameters, directory, world.rank, ema))
    set_adam_steps(engine, state.adam_steps)
    set_loss_scaler_state(engine, state.loss_scale)
    push_masters(engine)
    engine.global_steps, engine.skipped_steps = state.step, state.skipped


def _compare(file: Path, network: nn.Module, expected: set[str]) -> None:
    with open_tensors(file) as handle:
        files = dict.fromkeys(handle.keys(), file)
    load_tensors(files, network, expected, file, assign=None)


@torch.no_grad()
def _load(
    engine: deepspeed.DeepSpeedEngine, parameters: dict[str, nn.Parameter], directory: Path, rank: int, ema: Ema | None
) -> None:
    fragments = find_fragments(engine, parameters)
    _load_named(directory / WEIGHTS, fragments, master_partitions(engine))
    if ema is not None:
        if not (directory / AVERAGE).is_file():
            raise ValueError(
                f"{directory}: holds no {AVERAGE} but the recipe keeps an average; remove `ema` or start "
                "the stage again with --resume never"
            )
        _load_named(directory / AVERAGE, fragments, ema.shadows)
    states = adam_states(engine)
    moments = {name: [state[name] for state in states] for name in MOMENTS}
    files = sorted((directory / OPTIMIZER).glob("rank_*.safetensors"))
    # The same rank of as many ranks under the same stage finds all of its own in its own file.
    _load_parts([*files[rank : rank + 1], *files[:rank], *files[rank + 1 :]], fragments, moments, directory)


def _load_named(file: Path, fragments: Mapping[str, Fragment], flats: list[Tensor]) -> None:
    """Fill this rank's fragments from a file of whole tensors."""
    with open_tensors(file) as handle:
        for name, (group, offset, start, numel) in fragments.items():
            flats[group].data[offset : offset + numel].copy_(handle.get_tensor(name).flatten()[start : start + numel])


def _load_parts(
    files: Iterable[Path], fragments: Mapping[str, Fragment], moments: Mapping[str, list[Tensor]], directory: Path
) -> None:
    """Fill this rank's fragments of the moments from the partitions of the ranks that wrote them."""
    missing = {name: fragment.numel for name, fragment in fragments.items()}
    for file in files:
        if not missing:
            return
        try:
            with open_tensors(file) as handle:
                written = json.loads(handle.metadata()["fragments"])
                slices = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118  # no mapping
                for name in missing.keys() & written.keys():
                    own, other = fragments[name], Fragment(*written[name])
                    first, last = max(own.start, other.start), min(own.start + own.numel, other.start + other.numel)
                    if first >= last:
                        continue
                    source, target = other.offset + first - other.start, own.offset + first - own.start
                    for moment, flats in moments.items():
                        values = slices[f"{moment}.{other.group}"][source : source + last - first]
                        flats[own.group][target : target + last - first].copy_(values)
                    missing[name] -= last - first
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DamagedError(
                f"{file}: not a part of an optimizer's state ({error}), expected {', '.join(MOMENTS)}"
            ) from error
        missing = {name: numel for name, numel in missing.items() if numel}
    if missing:
        raise DamagedError(
            f"{directory / OPTIMIZER}: holds no moments of {missing[min(missing)]} elements of {min(missing)} (and of "
            f"{len(missing) - 1} other parameters), expected those of all; use an older checkpoint"
        )
