"""What the ranks of a ``Pair`` run: the real trainer on a family, its numbers returned."""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from stagecoach.models.family import StageSpec
from stagecoach.models.weights import Weights
from stagecoach.trainer.distributed import start
from stagecoach.trainer.engine import set_learning_rate
from stagecoach.trainer.recipe import Recipe
from stagecoach.trainer.reporting.logs import log_to_run
from stagecoach.trainer.run import one_step, run_stages
from stagecoach.trainer.setup import StageSetup, prepare_stage
from stagecoach.trainer.stage import StageLoop
from stagecoach.trainer.stage_plan import StagePlan
from tests.toy import ToyConfig, ToyFamily

STAGE_KEYS = ("gradient_clipping", "warmup_steps", "schedule", "gradient_check_steps", "loss_weights")


def family_recipe(
    family: str, shards: str | list[dict[str, Any]], run: Path | str, stages: int, **changes: Any
) -> Recipe:
    """A recipe of short stages of a family's tiny size; ``changes`` go into the recipe, those with a stage's keys into
    all of its stages."""
    stage = {
        "steps": 6,
        "global_batch": 4,
        "micro_batch": 1,
        "learning_rate": 1e-3,
        "validate_every": 1000,
        "preview_every": 1000,
        "checkpoint_every": 1000,
    }
    stage |= {key: changes.pop(key) for key in list(changes) if key in stage or key in STAGE_KEYS}
    values = {
        "family": family,
        "size": "tiny",
        "data": shards,
        "run": str(run),
        "precision": "fp32",
        "attention": "sdpa",
        "activation_checkpointing": "none",
        "optimizer": {"torch_adam": True},
        "validation_samples": 2,
        "preview_samples": 1,
        "logging": {"every": 1, "tensorboard": False, "wandb": "off"},
        "stages": dict.fromkeys(range(1, stages + 1), stage),
    }
    return Recipe.model_validate(values | changes)


def cpu_recipe(family: str, shards: Path | str, run: Path | str, stages: int, **changes: Any) -> Recipe:
    """The same; under ZeRO-3 with the DeepSpeed file for CPUs, where no other is given."""
    if changes.get("zero", 3) == 3:
        changes = {"ds_config": "ds_configs/zero3_cpu.json"} | changes
    return family_recipe(family, str(shards), run, stages, **changes)


CHANGED = {"steps": 4, "optimizer": {"torch_adam": True, "weight_decay": 0.5, "betas": (0.5, 0.6), "eps": 1e-4}}
OTHER_RATES = (0.25, 0.75)
"""``lr_scale`` and ``start_fraction`` of ``second``, whose own are 0.5 and 0."""


def toy_recipe(shards: str | list[dict[str, Any]], run: str, **changes: Any) -> Recipe:
    own = {"steps": 20, "global_batch": 8, "micro_batch": 2, "learning_rate": 1e-2, "validation_samples": 5}
    return family_recipe("toy", shards, run, 2, **own | changes)


def train(recipe: dict[str, Any], stages: list[int], **options: Any) -> list[str]:
    """Adapters of ``stages`` of a dumped recipe; runs on every rank."""
    if not options.get("dry_run"):
        log_to_run(recipe["run"])
    return [str(path) for path in run_stages(Recipe.model_validate(recipe), stages, **options)]


def train_dry(recipe: dict[str, Any], stages: list[int]) -> list[str]:
    return train(recipe, stages, dry_run=True)


def prepared(recipe: dict[str, Any], stage: int, **options: Any) -> StageSetup:
    """A stage of a dumped recipe before its first step."""
    world = start()
    plan = StagePlan.resolve(Recipe.model_validate(recipe), stage, world.size)
    return prepare_stage(plan, world, **{"init": None, "resume": "never"} | options)


@contextmanager
def other_rates(lr_scale: float, start_fraction: float) -> Iterator[None]:
    """While the block runs, stage 2 of the toy family trains ``second`` at another rate and from another step on."""
    declared = ToyFamily.stages

    def stages(self: ToyFamily, config: ToyConfig) -> tuple[StageSpec, ...]:
        one, two = declared(self, config)
        *others, second = two.trainable
        changed = replace(second, lr_scale=lr_scale, start_fraction=start_fraction)
        return one, replace(two, trainable=(*others, changed))

    ToyFamily.stages = stages  # type: ignore[method-assign]
    try:
        yield
    finally:
        ToyFamily.stages = declared  # type: ignore[method-assign]


def settings_in_force(recipe: dict[str, Any], stage: int, lr_scale: float, start_fraction: float) -> list[dict]:
    """The optimizer's groups after the newest checkpoint was loaded, and their ``rates`` in each step of the stage.
    ``second`` has other rates than when it was written."""
    with other_rates(lr_scale, start_fraction):
        setup = prepared(recipe, stage, resume="auto")
    if not setup.start.state.step:
        raise AssertionError("no checkpoint was loaded")
    optimizer = setup.engine.deepspeed.optimizer
    rates = []
    for step in range(setup.plan.stage.steps):
        set_learning_rate(setup.engine.deepspeed, setup.plan.stage, step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    names = ("weight_decay", "betas", "eps", "lr_scale", "start_fraction", "name")
    found = [
        {name: group[name] for name in names} | {"rates": list(by_step)}
        for group, by_step in zip(optimizer.param_groups, zip(*rates, strict=True), strict=True)
    ]
    setup.engine.deepspeed.destroy()
    return found


def check_settings(groups: list[dict]) -> None:
    """Those of stage 2 with ``CHANGED`` and ``OTHER_RATES``, and none of what the checkpoint was written with."""
    assert len(groups) == 4
    for group in groups:
        assert (tuple(group["betas"]), group["eps"]) == ((0.5, 0.6), 1e-4)
        assert group["weight_decay"] == (0.0 if group["name"].endswith("_no_decay") else 0.5)
        second = group["name"].startswith("lr_x0.25_from_0.75")
        assert (group["lr_scale"], group["start_fraction"]) == (OTHER_RATES if second else (1.0, 0.0))
        assert group["rates"] == ([0.0, 0.0, 0.0, 0.25e-2] if second else [1e-2] * 4)
    assert [group["lr_scale"] for group in groups].count(0.25) == 2


def losses(run: str | Path, stage: int, name: str = "loss") -> list[float]:
    """Values of one metric of a stage by step."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if line["stage"] == stage and name in line]


def train_after_a_loss(recipe: dict[str, Any], stages: list[int]) -> list[str]:
    """As ``train``, but the adapter that a stage started from is gone when it ends."""
    folder = Path(recipe["run"]) / f"stage{stages[0] - 1}" / "adapter"
    there = StageLoop._predecessor

    def gone(loop: StageLoop) -> Weights | None:
        shutil.rmtree(folder)
        return there(loop)

    StageLoop._predecessor = gone
    try:
        return train(recipe, stages)
    finally:
        StageLoop._predecessor = there


def joined() -> int:
    """World size after joining the process group."""
    return start().size


def most_gathered(setup: StageSetup, blocks: Iterable[nn.Module]) -> tuple[int, int, int]:
    """Frozen numbers in all, those of the largest of ``blocks``, and the most that were gathered at any time of an
    optimizer step."""
    network = setup.engine.network
    frozen = [p for p in network.parameters() if not p.requires_grad]
    counts = [sum(p.ds_numel for p in block.parameters() if not p.requires_grad) for block in blocks]
    most = 0

    def look(*_: Any) -> None:
        nonlocal most
        most = max(most, sum(p.numel() for p in frozen))

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    one_step(setup)
    for hook in hooks:
        hook.remove()
    setup.engine.deepspeed.destroy()
    return sum(p.ds_numel for p in frozen), max(counts), most
