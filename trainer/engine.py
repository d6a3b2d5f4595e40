"""A DeepSpeed engine for the trainable subset of one stage."""

import math
from collections.abc import Mapping
from typing import Any

import deepspeed
import torch
from torch import nn

from stagecoach.models.family import Trainable, has_started
from stagecoach.trainer.ds_config import read_ds_config
from stagecoach.trainer.freeze import parameter_count
from stagecoach.trainer.recipe import OptimizerRecipe, StageRecipe
from stagecoach.trainer.stage_plan import StagePlan


def deepspeed_config(plan: StagePlan) -> dict[str, Any]:
    """The recipe's DeepSpeed JSON with what the recipe owns written into it: batch sizes, precision, optimizer and
    clipping."""
    recipe, stage, batching = plan.recipe, plan.stage, plan.batching
    config = read_ds_config(recipe)
    config.update(
        train_batch_size=batching.global_batch,
        train_micro_batch_size_per_gpu=batching.micro,
        gradient_accumulation_steps=batching.accumulation,
        # Left out, DeepSpeed clips at 1.0; 0 is off.
        gradient_clipping=stage.gradient_clipping,
        optimizer={
            "type": "AdamW",
            "params": {
                "lr": stage.learning_rate,
                "betas": list(recipe.optimizer.betas),
                "eps": recipe.optimizer.eps,
                "weight_decay": recipe.optimizer.weight_decay,
                "torch_adam": recipe.optimizer.torch_adam,
            },
        },
        zero_force_ds_cpu_optimizer=False,
        # The trainer logs by itself.
        steps_per_print=2**31,
        wall_clock_breakdown=False,
    )
    if recipe.precision != "fp32":
        config[recipe.precision] = {"enabled": True}
    return config


def parameter_groups(
    network: nn.Module, trained: dict[str, Trainable], optimizer: OptimizerRecipe
) -> list[dict[str, Any]]:
    """Optimizer groups by learning rate and by whether weight decay applies (to matrices and kernels; not to biases,
    norms, gates and tokens). None is empty or frozen: ZeRO-2 fails on groups of frozen parameters."""
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if name in trained:
            decays = len(getattr(parameter, "ds_shape", parameter.shape)) >= 2
            groups.setdefault((trained[name].lr_scale, trained[name].start_fraction, decays), []).append(parameter)
    return [
        {
            "params": params,
            "lr_scale": scale,
            "start_fraction": start_fraction,
            "weight_decay": optimizer.weight_decay if decays else 0.0,
            "name": f"lr_x{scale:g}"
            + (f"_from_{start_fraction:g}" if start_fraction else "")
            + ("_decay" if decays else "_no_decay"),
        }
        for (scale, start_fraction, decays), params in groups.items()
    ]


def start_engine(module: nn.Module, groups: list[dict[str, Any]], config: dict[str, Any]) -> deepspeed.DeepSpeedEngine:
    """``deepspeed.initialize`` for one stage. Call ``engine.destroy()`` before the next stage's."""
    engine, *_ = deepspeed.initialize(model=module, model_parameters=groups, config=config)
    if hasattr(engine.optimizer, "check_grad_overflow"):
        # ZeRO-1 and 2 look for non-finite gradients in half precision only; a bad step must be skipped in fp32 too.
        engine.optimizer.check_grad_overflow = True
    scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
    if hasattr(scaler, "raise_error_at_min_scale"):
        # The loop counts what cannot be helped by a smaller scale, and names the last checkpoint.
        scaler.raise_error_at_min_scale = False
    return engine


def loss_scale(engine: deepspeed.DeepSpeedEngine) -> tuple[float, float] | None:
    """The loss scale of fp16 and the least that it may fall to; None where there is none that falls."""
    scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
    return (float(scaler.cur_scale), float(scaler.min_scale)) if getattr(scaler, "dynamic", False) else None


def learning_rate(stage: StageRecipe, step: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0): linear warm-up, then ``constant``, or ``linear`` or ``cosine``
    down to ``final_lr_fraction`` of it at the end of the stage."""
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / stage.warmup_steps
    part = (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    shape = {"constant": 1.0, "linear": 1.0 - part, "cosine": 0.5 + 0.5 * math.cos(math.pi * part)}[stage.schedule]
    if stage.schedule == "constant":
        return stage.learning_rate
    return stage.learning_rate * (stage.final_lr_fraction + (1.0 - stage.final_lr_fraction) * shape)


def group_rate(group: Mapping[str, Any], stage: StageRecipe, step: int) -> float:
    """Learning rate of one of ``parameter_groups`` in optimizer step ``step``.

    While it is closed its gradients are multiplied by zero, so Adam's moments stay zero but their bias correction runs
    on: its first updates would be three times too large, but for the warm-up it gets of its own.
    """
    start_fraction = group["start_fraction"]
    if not has_started(start_fraction, step, stage.steps):
        return 0.0
    since = step - math.ceil(start_fraction * stage.steps)
    warm = min(1.0, (since + 1) / max(1, stage.warmup_steps)) if start_fraction else 1.0
    return learning_rate(stage, step) * group["lr_scale"] * warm


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, stage: StageRecipe, step: int) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = group_rate(group, stage, step)


def master_partitions(engine: deepspeed.DeepSpeedEngine) -> list[torch.Tensor]:
    """This rank's fp32 master weights, flat, one tensor per group (ZeRO-1, 2, BF16_Optimizer, 3)."""
    optimizer = engine.optimizer
    for attribute in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        found = getattr(optimizer, attribute, None)
        if found is not None:
            return list(found)
    raise ValueError(f"{type(optimizer).__name__} has no known fp32 partitions, expected a ZeRO optimizer")


def push_masters(engine: deepspeed.DeepSpeedEngine) -> None:
    """Make the weights that the forward uses equal to the fp32 master weights, after these were written directly."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        # A forward leaves parameters gathered (reuse distance); they would go on being used as they were.
        engine.empty_partition_cache()
        # A node's second copy (zero_hpz_partition_size) would be gathered in the place of what is written now.
        optimizer.invalidate_secondary_tensor()
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    else:
        optimizer.update_lp_params()


def full_parameters(
    engine: deepspeed.DeepSpeedEngine, parameters: dict[str, nn.Parameter], keep: bool
) -> dict[str, torch.Tensor]:
    """fp32 master weights of trainable ``parameters``, gathered one at a time to the CPU where ``keep`` is set (rank
    0).

    A collective: every rank calls it. Raises ``ValueError`` for an empty or non-finite tensor, naming it.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    tensors = {}
    for name, parameter in parameters.items():
        full = safe_get_full_fp32_param(parameter)
        if full is None or full.numel() != parameter_count(parameter):
            raise ValueError(
                f"{name}: gathered {0 if full is None else full.numel()} elements, expected "
                f"{parameter_count(parameter)}; the engine does not own this parameter"
            )
        if not torch.isfinite(full).all():
            raise ValueError(f"{name}: holds non-finite values, so nothing is written; resume an older checkpoint")
        if keep:
            tensors[name] = full.detach().to("cpu", torch.float32, copy=True).contiguous()
    return tensors


def frozen_copies(network: nn.Module, names: set[str], keep: bool) -> dict[str, torch.Tensor]:
    """fp32 CPU copies of frozen tensors, gathered where they are sharded. A collective under ``frozen: shard``."""
    parameters = dict(network.named_parameters())
    copies = {}
    for name in sorted(names):
        with deepspeed.zero.GatheredParameters(parameters[name], enabled=hasattr(parameters[name], "ds_tensor")):
            if keep:
                copies[name] = parameters[name].detach().to("cpu", torch.float32, copy=True).contiguous()
    return copies
