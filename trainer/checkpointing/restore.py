"""Loading a checkpoint into an engine."""

import shutil
from pathlib import Path

import deepspeed
import torch.distributed as dist
from torch import nn

from stagecoach.data.files import DamagedError
from stagecoach.data.tensors import open_tensors
from stagecoach.trainer.adapter import load_tensors
from stagecoach.trainer.checkpointing.state import AVERAGE, TAG, WEIGHTS
from stagecoach.trainer.checkpointing.universal import separate_groups, to_universal
from stagecoach.trainer.distributed import World, attempt, on_first, together
from stagecoach.trainer.ema import Ema


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
    together(world, attempt(load_tensors, directory / WEIGHTS, network, expected, compare_only=True))
    source = to_universal(directory, world) if universal else directory
    declared = [
        {key: value for key, value in group.items() if key not in ("params", "step")}
        for group in engine.optimizer.param_groups
    ]
    path, _ = engine.load_checkpoint(str(source), tag=TAG, load_module_strict=False)
    if path is None:
        raise DamagedError(f"{source}: DeepSpeed found no checkpoint under the tag {TAG!r}")
    if universal:
        separate_groups(engine, declared)
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


def _restore_average(network: nn.Module, file: Path, ema: Ema) -> None:
    from deepspeed.utils import safe_set_full_fp32_param

    with ema.swapped_in(), open_tensors(file) as handle:
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                safe_set_full_fp32_param(parameter, handle.get_tensor(name).to(ema.shadows[0].device))
