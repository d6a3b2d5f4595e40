"""Time training steps on one GPU with random weights and batches: `python benchmarks/gpu_step.py --stage 1`.

Takes a recipe as the training scripts do; a clip of another size is `--set model.clip.frames=21`. `--plain` trains
the same network with PyTorch alone, for machines without DeepSpeed. Ends with one line of JSON.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from typer import Option

from stagecoach.models import get_family
from stagecoach.models.common.attention import resolve_backend, set_backend
from stagecoach.models.family import Batch, Progress, Trainable
from stagecoach.models.trainable import freeze
from stagecoach.trainer.activation_checkpointing import apply_activation_checkpointing
from stagecoach.trainer.cli import Outcome, RecipeFlags, command, run_app, single
from stagecoach.trainer.hardware import device_name, peak_flops, peak_memory_bytes
from stagecoach.trainer.objective import weighted_total
from stagecoach.trainer.planning.meter import step_costs
from stagecoach.trainer.recipe import Recipe
from stagecoach.trainer.settings import overlay
from stagecoach.trainer.stage_plan import StagePlan

Step = Callable[[Batch, Progress], float]
"""Forward, backward and update on a batch; the loss."""


def measure(recipe: Recipe, index: int, *, plain: bool = False, warmup: int = 3, steps: int = 10) -> dict[str, Any]:
    """Median over ``steps`` after ``warmup`` steps of stage ``index``, one micro-batch each, on this machine's GPU (its
    CPU where it has none, whose times say nothing of a GPU's). Seconds and bytes; ``mfu`` counts no recomputed
    FLOPs."""
    recipe = with_random_base(recipe)
    stage = recipe.stages[index]
    stage = stage.model_copy(update={"global_batch": stage.micro_batch})
    plan = StagePlan.resolve(recipe.model_copy(update={"stages": {**recipe.stages, index: stage}}), index)
    family, config, dtype = plan.family, plan.config, plan.dtype
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    backend = resolve_backend(recipe.attention, device, dtype)
    network = family.build(config, index, device, dtype)
    family.load_base(network, config, device)
    set_backend(network, backend)
    trained = freeze(network, plan.spec)
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    apply_activation_checkpointing(family.recompute_units(network), recipe.activation_checkpointing)
    step = (plain_step if plain else engine_step)(network, trained, plan)

    progress = plan.progress(0, plan.helpers(device))
    seconds, losses = [], []
    for i in range(warmup + steps):
        batch = family.example_batch(config, index, stage.micro_batch, device, i)
        if i == warmup and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        taken, loss = timed(step, batch, progress, device)
        losses.append(loss)
        if i >= warmup:
            seconds.append(taken)
    flops = step_costs(plan, stage.micro_batch).flops() / stage.micro_batch
    median, peak = statistics.median(seconds), peak_flops(device_name(device))
    return {
        "family": recipe.family,
        "size": recipe.size,
        "stage": index,
        "device": device_name(device),
        "engine": "plain" if plain else f"deepspeed zero{recipe.zero}",
        "precision": recipe.precision,
        "attention": backend.value,
        "activation_checkpointing": recipe.activation_checkpointing,
        "micro_batch": stage.micro_batch,
        "model": config.model_dump(mode="json"),
        "torch": torch.__version__,
        "warmup": warmup,
        "steps": steps,
        "trainable": trainable,
        "step_seconds": median,
        "step_seconds_least": min(seconds),
        "step_seconds_most": max(seconds),
        "samples_per_second": stage.micro_batch / median,
        "flops_per_sample": flops,
        "mfu": stage.micro_batch * flops / (median * peak) if peak else None,
        "peak_memory_bytes": peak_memory_bytes(device),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def with_random_base(recipe: Recipe) -> Recipe:
    """The recipe without a path to base weights, where its family can do without."""
    fields = get_family(recipe.family).config_type.model_fields
    if "allow_random_init" not in fields:
        return recipe
    random: dict[str, Any] = {"allow_random_init": True}
    for name, field in fields.items():
        inner = getattr(field.annotation, "model_fields", {})
        if name == "weights":  # a section of paths
            random[name] = {part: path.default for part, path in inner.items()}
        elif name == "base":
            random[name] = None
        elif "base" in inner:  # a frozen helper next to the backbone
            random[name] = {"base": None}
    return recipe.model_copy(update={"model": overlay(recipe.model, random)})


def timed(step: Step, batch: Batch, progress: Progress, device: torch.device) -> tuple[float, float]:
    """Seconds of a step from an idle device until it is idle again, and the loss."""
    if device.type != "cuda":
        started = time.perf_counter()
        loss = step(batch, progress)
        return time.perf_counter() - started, float(loss)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    loss = step(batch, progress)
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1000, float(loss)


def engine_step(network: nn.Module, trained: dict[str, Trainable], plan: StagePlan) -> Step:
    """Through DeepSpeed, with the recipe's ZeRO stage on one rank."""
    from stagecoach.trainer.distributed import start
    from stagecoach.trainer.engine import deepspeed_config, parameter_groups, start_engine
    from stagecoach.trainer.subset import engine_module

    start()
    engine = start_engine(
        engine_module(network, plan.recipe.frozen),
        parameter_groups(network, trained, plan.recipe.optimizer),
        deepspeed_config(plan),
    )

    def step(batch: Batch, progress: Progress) -> Tensor:
        loss = weighted_total(engine(batch, progress)["losses"], plan.spec, plan.stage.loss_weights, progress).mean()
        engine.backward(loss)
        engine.step()
        return loss.detach()

    return step


def plain_step(network: nn.Module, trained: dict[str, Trainable], plan: StagePlan) -> Step:
    """PyTorch's AdamW on fp32 master weights of trained weights that are used in the recipe's precision."""
    stage, settings = plan.stage, plan.recipe.optimizer
    weights = [p for p in network.parameters() if p.requires_grad]
    master_weights = [p.detach().float().clone() for p in weights]
    for weight in weights:
        weight.data = weight.data.to(plan.dtype)
    optimizer = torch.optim.AdamW(
        master_weights,
        lr=stage.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )

    def step(batch: Batch, progress: Progress) -> Tensor:
        loss = weighted_total(network(batch, progress)["losses"], plan.spec, plan.stage.loss_weights, progress).mean()
        loss.backward()
        for weight, master in zip(weights, master_weights, strict=True):
            master.grad, weight.grad = None if weight.grad is None else weight.grad.float(), None
        if stage.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(master_weights, stage.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_copy_(weights, master_weights)
        return loss.detach()

    return step


def show(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['family']} {result['size']} stage {result['stage']} on {result['device']}",
        title_justify="left",
        show_header=False,
    )
    rows = {
        "engine": f"{result['engine']}, {result['precision']}, attention {result['attention']}, recompute "
        f"{result['activation_checkpointing']}, micro-batch {result['micro_batch']}",
        "step": f"{result['step_seconds']:.4f} s (median of {result['steps']}, {result['step_seconds_least']:.4f} to "
        f"{result['step_seconds_most']:.4f})",
        "samples/s": f"{result['samples_per_second']:.3f}",
        "TFLOP per sample": f"{result['flops_per_sample'] / 1e12:.2f}",
        "MFU": "peak rate unknown" if result["mfu"] is None else f"{result['mfu']:.1%}",
        "peak memory": f"{result['peak_memory_bytes'] / 2**30:.2f} GiB",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console(width=100).print(table)
    print(json.dumps(result, sort_keys=True))


@command(show)
def time_steps(
    recipe: RecipeFlags,
    stage: int = 1,
    warmup: Annotated[int, Option(help="steps before the clock runs")] = 3,
    steps: Annotated[int, Option(help="steps that are timed")] = 10,
    plain: Annotated[bool, Option("--plain", help="without DeepSpeed")] = False,
) -> Outcome:
    return Outcome(measure(recipe.load(reads_data=False), stage, plain=plain, warmup=warmup, steps=steps))


def main() -> NoReturn:
    run_app(single(time_steps, __doc__ or ""))


if __name__ == "__main__":
    main()
