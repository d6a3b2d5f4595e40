"""The console command ``stagecoach``, whose sub-commands the scripts of this folder run one each.

Bodies import what they need, so that ``--help`` and shell completion do without torch.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from stagecoach import __version__
from stagecoach.launch import shards
from stagecoach.launch.evaluating import evaluate
from stagecoach.launch.exporting import export
from stagecoach.launch.generating import compare, sample
from stagecoach.launch.paths import check_paths, on_each_node
from stagecoach.trainer.cli import ModelFlags, Outcome, RecipeFlags, command, new_app, run_app, single
from stagecoach.trainer.environment import check_environment
from stagecoach.trainer.reporting.logs import log_to_run
from stagecoach.trainer.waiting import waiting

log = logging.getLogger(__name__)

RecipeGpus = Annotated[int | None, typer.Option(help="GPUs; as many as take one micro-batch each where not given")]
Init = Annotated[
    Path | None,
    typer.Option(
        metavar="ADAPTER|FILE|CHECKPOINT|base",
        help="what the first stage starts from instead of the adapter that the stage before left in the run: an "
        "adapter, a file of export.py, a published file or a checkpoint, of the stage before it or of the same one (a "
        "warm start), or base for no adapter",
    ),
]


@dataclass
class TrainFlags:
    """How a training command goes about it."""

    init: Init = None
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|never|PATH", help="go on from the newest valid checkpoint, from none, or from this one"
        ),
    ] = "auto"
    dry_run: Annotated[bool, typer.Option("--dry-run", help="build everything and run one step on one sample")] = False


ExpectRanks = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="refuse to start where the launcher started fewer ranks")
]


def _train(recipe_flags: RecipeFlags, flags: TrainFlags, stages: list[int] | None, expect_ranks: int | None) -> Outcome:
    if flags.dry_run and flags.resume != "auto":
        raise typer.BadParameter("--resume is not allowed with --dry-run, which takes the first step of a stage")
    check_environment(expect_ranks)
    on_each_node(lambda: check_paths(recipe_flags, flags.init, flags.resume))
    with waiting("PyTorch and DeepSpeed to be imported"):
        recipe = recipe_flags.load()
        import stagecoach.trainer.run  # noqa: F401
    from stagecoach.trainer.distributed import stop
    from stagecoach.trainer.interrupt import EXIT_CODE, Interrupted
    from stagecoach.trainer.run import run_stages

    if not flags.dry_run:
        log_to_run(recipe.run)
    try:
        adapters = run_stages(recipe, stages or sorted(recipe.stages), **asdict(flags))
    except Interrupted as interruption:
        log.warning(interruption)
        stop()
        return Outcome(code=EXIT_CODE)
    stop()
    return Outcome({"run": recipe.run, "adapters": [str(path) for path in adapters]})


def stage(index: int) -> Callable[..., Outcome]:
    """The command that trains one stage."""

    @command()
    def train_stage(recipe: RecipeFlags, flags: TrainFlags, expect_ranks: ExpectRanks = None) -> Outcome:
        return _train(recipe, flags, [index], expect_ranks)

    return train_stage


@command()
def train(
    recipe: RecipeFlags,
    flags: TrainFlags,
    stages: Annotated[
        str | None, typer.Option(metavar="N,...", help="stages to train in this order; all of the recipe if not given")
    ] = None,
    expect_ranks: ExpectRanks = None,
) -> Outcome:
    """Train stages in sequence, in this process or in each of those that a launcher started."""
    return _train(recipe, flags, _numbers(stages), expect_ranks)


def _numbers(words: str | None) -> list[int] | None:
    if words is None:
        return None
    try:
        numbers = [int(word) for word in words.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers):
        raise typer.BadParameter(f"--stages {words!r}, expected different numbers with commas between them, as 1,2")
    return numbers


def _show_plan(result: dict[str, Any]) -> None:
    from stagecoach.trainer.planning.plan_table import show

    show(result)


def _gpu_names() -> list[str]:
    from stagecoach.trainer.hardware import PEAK_BF16

    return sorted(PEAK_BF16)


@command(_show_plan)
def plan(
    recipe: ModelFlags,
    gpus: RecipeGpus = None,
    gpu: Annotated[str, typer.Option(autocompletion=_gpu_names, help="type of the GPUs")] = "H20",
    utilisation: Annotated[float, typer.Option(help="part of the GPU's peak that executed FLOPs reach")] = 0.4,
    bandwidth: Annotated[float, typer.Option(metavar="GB/S", help="of the network, per GPU in a ring")] = 160,
) -> Outcome:
    """Count parameters, FLOPs, memory and hours of a recipe; no data, weights or GPU are needed."""
    from stagecoach.trainer.planning.planner import Cluster
    from stagecoach.trainer.planning.planner import plan as count

    if gpu not in _gpu_names():
        raise typer.BadParameter(f"--gpu {gpu}, expected one of {', '.join(_gpu_names())}")
    return Outcome(count(recipe.load(), Cluster(gpus, gpu, utilisation, bandwidth * 1e9)))


@command()
def verify(
    recipe: RecipeFlags,
    stage: Annotated[
        list[int] | None, typer.Option(metavar="N", help="a stage that will be run; repeatable; all if not given")
    ] = None,
    init: Init = None,
    gpus: RecipeGpus = None,
    full: Annotated[bool, typer.Option("--full", help="read every shard and compare its sha256")] = False,
) -> Outcome:
    """Check a run before any GPU is busy, one line per check; exits with 1 if one fails."""
    from stagecoach.trainer.planning.preflight import Check, preflight

    checks = []
    try:
        loaded = recipe.load()
        for index in stage or ():
            if index not in loaded.stages:
                raise ValueError(f"--stage {index}: not in the recipe, expected one of {sorted(loaded.stages)}")
        found = preflight(loaded, stages=sorted(stage or loaded.stages), init=init, gpus=gpus, full=full)
    except ValueError as error:
        found = iter([Check("recipe", False, str(error))])
    for check in found:
        checks.append(check)
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.message}", flush=True)
    ok = all(check.ok for check in checks)
    return Outcome({"ok": ok, "checks": [asdict(check) for check in checks]}, 0 if ok else 1)


app = new_app(name="stagecoach", add_completion=True)
for function in (train, plan, verify, export, sample, compare, evaluate):
    app.command()(function)
app.add_typer(shards.app, name="shards")


@app.callback(invoke_without_command=True)
def stagecoach(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """A DeepSpeed trainer for diffusion adapters, in stages."""
    if version:
        print(__version__)
        raise typer.Exit


def main() -> NoReturn:
    run_app(app, "stagecoach")


def run(function: Callable[..., Outcome], description: str | None) -> NoReturn:
    """Body of a script that is one command."""
    run_app(single(function, description or ""))
