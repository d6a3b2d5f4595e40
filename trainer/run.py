"""Runs: one stage, all stages in sequence, or a dry run of one step."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stagecoach.data.files import DamagedError, atomic_file
from stagecoach.trainer.adapter import read_card
from stagecoach.trainer.distributed import World, attempt, from_first, on_first, start, together
from stagecoach.trainer.feed import device_batches
from stagecoach.trainer.interrupt import StopRequest
from stagecoach.trainer.recipe import Recipe
from stagecoach.trainer.reporting.monitor import Monitor, NodeMonitor, RunMonitor
from stagecoach.trainer.reporting.report import write_report
from stagecoach.trainer.setup import StageSetup, adapter_directory, prepare_stage
from stagecoach.trainer.stage import StageLoop, describe
from stagecoach.trainer.stage_plan import StagePlan
from stagecoach.trainer.watch.cluster import ClusterMeter
from stagecoach.trainer.watch.heartbeat import beat, phase
from stagecoach.trainer.watch.start import Watch, watching

log = logging.getLogger(__name__)


def run_stages(
    recipe: Recipe, stages: list[int], *, init: Path | None = None, resume: str = "auto", dry_run: bool = False
) -> list[Path]:
    """Train ``stages`` in order in this process group and return their adapters.

    In a run of several stages one whose adapter is already there and intact is not trained again. ``init`` is for the
    first of the stages. Raises ``Interrupted`` when a signal asked the run to stop and a checkpoint is written.
    """
    for index in stages:
        if index not in recipe.stages:
            raise ValueError(
                f"family {recipe.family} at size {recipe.size} has no stage {index} in this recipe, "
                f"expected one of {sorted(recipe.stages)}"
            )
    world = start()
    adapters = []
    with StopRequest() as request, _watched(recipe, world, dry_run) as watch:
        for position, index in enumerate(stages):
            done = (
                None
                if dry_run or len(stages) == 1 or resume == "never"
                else on_first(world, _finished, adapter_directory(recipe.run, index))
            )
            start_from = init if position == 0 else None
            if done is not None:
                log.info("stage %s is finished: %s", index, done)
                adapters.append(done)
            elif dry_run:
                _dry_run(recipe, index, world, start_from)
            else:
                adapters.append(_train(recipe, index, world, start_from, resume, request, watch))
    if not dry_run:
        log.info(on_first(world, write_report, recipe.run))
    return adapters


@contextmanager
def _watched(recipe: Recipe, world: World, dry_run: bool) -> Iterator[Watch]:
    """All ranks are watched while the block runs, but in a dry run."""
    if dry_run:
        yield Watch(())
        return
    bounds = recipe.watch.bounds(recipe.stream.timeout)
    with watching(world, recipe.run, recipe.watch.on_hang, bounds) as watch:
        yield watch


def _train(
    recipe: Recipe, index: int, world: World, init: Path | None, resume: str, request: StopRequest, watch: Watch
) -> Path:
    plan = StagePlan.resolve(recipe, index, world.size)
    beat(stage=index, step=0, micro=0, phase="build")
    setup = prepare_stage(plan, world, init=init, resume=resume)
    monitor = _monitor(recipe, index, world, watch, setup.start.state.step)
    try:
        together(world, attempt(describe, setup, monitor))
        together(world, attempt(monitor.facts, {"hosts": watch.hosts}))
        return StageLoop(setup, monitor, request, ClusterMeter(world, watch.hosts)).run()
    finally:
        with phase("save"):
            monitor.close()
        setup.engine.deepspeed.destroy()


def _monitor(recipe: Recipe, index: int, world: World, watch: Watch, step: int) -> Monitor:
    """Rank 0's, and where W&B shows all nodes' system metrics one on the first rank of each other node."""
    run, host = Path(recipe.run), watch.hosts[world.rank]
    monitor = Monitor()

    def open_folder() -> None:
        nonlocal monitor
        with atomic_file(run / "recipe.yaml", "w") as handle:
            handle.write(recipe.dump())
        monitor = RunMonitor(recipe, run, index, step, host if watch.nodes > 1 else None)

    together(world, attempt(open_folder) if world.is_first else None)
    if watch.nodes > 1 and recipe.logging.wandb == "online":
        shared = from_first(monitor.shared_run if isinstance(monitor, RunMonitor) else None)
        if shared is not None and not world.is_first and watch.leads(world.rank):
            return NodeMonitor(recipe, run, index, shared, host)
    return monitor


def _dry_run(recipe: Recipe, index: int, world: World, init: Path | None) -> None:
    """Build everything and run one step on one sample per rank; nothing is written but a line on the terminal."""
    stage = recipe.stages[index].model_copy(update={"global_batch": world.size, "micro_batch": 1})
    recipe = recipe.model_copy(update={"stages": {**recipe.stages, index: stage}})
    plan = StagePlan.resolve(recipe, index, world.size)
    setup = prepare_stage(plan, world, init=init, resume="never", rehearsal=True)
    try:
        values = one_step(setup)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(values.items()))
        log.info("dry run of stage %s (%s): one step on %s samples: %s", index, plan.spec.name, world.size, shown)
    finally:
        setup.engine.deepspeed.destroy()


def one_step(setup: StageSetup) -> dict[str, float]:
    """One optimizer step from the start of a prepared stage; the means that the loop would log."""
    plan, loop = setup.plan, StageLoop(setup, Monitor(), StopRequest())
    setup.engine.deepspeed.module.train()
    for _, _, batch in device_batches(setup.stream(0, 1), setup.world.device, plan.recipe.seed, plan.index):
        loop.micro_step(batch)
    return loop.meter.reduce()


def _finished(directory: Path) -> Path | None:
    try:
        read_card(directory)
    except DamagedError as error:
        if directory.exists():
            log.warning("adapter ignored: %s", error)
        return None
    return directory
