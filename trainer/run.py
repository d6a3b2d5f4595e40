"""Runs: one stage, all stages in sequence, or a dry run of one step."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from stagecoach.data.files import atomic_file
from stagecoach.data.paths import expand_path
from stagecoach.trainer.checkpointing.state import read_state
from stagecoach.trainer.distributed import World, attempt, from_first, on_first, start, together
from stagecoach.trainer.feed import device_batches
from stagecoach.trainer.finished import finished_adapter
from stagecoach.trainer.interrupt import StopRequest
from stagecoach.trainer.recipe import Recipe
from stagecoach.trainer.reporting.monitor import Monitor, NodeMonitor, RunMonitor
from stagecoach.trainer.reporting.report import write_report
from stagecoach.trainer.reporting.run_record import read_run_record
from stagecoach.trainer.run_folder import RunFolder, adapter_directory, is_requeued, mark_job, run_folder, set_aside
from stagecoach.trainer.setup import StageData, StageSetup, prepare_stage
from stagecoach.trainer.stage import StageLoop, describe
from stagecoach.trainer.stage_plan import StagePlan
from stagecoach.trainer.start_point import named_checkpoint
from stagecoach.trainer.waiting import waiting
from stagecoach.trainer.watch.cluster import ClusterMeter
from stagecoach.trainer.watch.heartbeat import beat, phase
from stagecoach.trainer.watch.start import Watch, watching

log = logging.getLogger(__name__)


def run_stages(
    recipe: Recipe, stages: list[int], *, init: Path | None = None, resume: str = "auto", dry_run: bool = False
) -> list[Path]:
    """Train ``stages`` in order in this process group and return their adapters.

    A stage whose adapter is already there, intact and of this recipe is not trained again.
    ``init`` is for the first of the stages, the path of a checkpoint in ``resume`` for the stage that it belongs to.
    Raises ``Interrupted`` when a signal asked the run to stop and a checkpoint is written, and ``ValueError`` where
    another run writes to the folder, or a stage is finished that was trained with other settings.
    """
    init = None if init is None else Path(expand_path(str(init)))
    for index in stages:
        if index not in recipe.stages:
            raise ValueError(
                f"family {recipe.family} at size {recipe.size} has no stage {index} in this recipe, "
                f"expected one of {sorted(recipe.stages)}"
            )
    world = start()
    adapters = []
    if dry_run:
        for position, index in enumerate(stages):
            _dry_run(recipe, index, world, init if position == 0 else None)
        return []
    modes = on_first(world, _resume_modes, Path(recipe.run), stages, resume)
    with StopRequest() as request, run_folder(recipe.run, world) as folder, _watched(recipe, world) as watch:
        starts = [(index, init if position == 0 else None) for position, index in enumerate(stages)]
        # Before any is trained; an adapter that is made meanwhile is looked at again.
        for index, start_from in starts:
            _kept(recipe, index, world, start_from, modes[index], len(stages) == 1)
        for index, start_from in starts:
            done = _kept(recipe, index, world, start_from, modes[index], len(stages) == 1)
            if done is not None:
                log.info("stage %s is finished: %s", index, done)
                adapters.append(done)
            else:
                adapters.append(_train(recipe, index, folder, start_from, modes[index], request, watch))
        with phase("save"):
            log.info(on_first(world, write_report, recipe.run))
    return adapters


def _resume_modes(run: Path, stages: list[int], resume: str) -> dict[int, str]:
    """``--resume`` of each stage: a checkpoint is for the one that it belongs to, the others go on by themselves; a job
    that Slurm has started again goes on from what it began with ``never``."""
    if resume == "never":
        return {index: "auto" if is_requeued(run, index) else "never" for index in stages}
    if resume == "auto" or len(stages) == 1:
        return dict.fromkeys(stages, resume)
    state = read_state(named_checkpoint(resume))
    if state.stage not in stages:
        raise ValueError(f"{resume}: a checkpoint of stage {state.stage}, expected one of the stages {stages}")
    return {index: resume if index == state.stage else "auto" for index in stages}


def _kept(recipe: Recipe, index: int, world: World, init: Path | None, resume: str, alone: bool) -> Path | None:
    """The adapter of a finished stage that is as the recipe says."""
    if resume != "auto":
        return None
    plan = StagePlan.resolve(recipe, index, world.size)
    beat(stage=index, step=0, micro=0, phase="build")  # files are hashed, which takes a while

    def find() -> Path | None:
        if not adapter_directory(recipe.run, index).exists():
            return None
        shards = StageData.open(plan).fingerprint(recipe.stream.active_shards)
        return finished_adapter(plan, shards, init, extend=alone)

    with waiting(f"what stage {index} left in {recipe.run} to be checked"):
        return on_first(world, find)


@contextmanager
def _watched(recipe: Recipe, world: World) -> Iterator[Watch]:
    """All ranks are watched while the block runs."""
    bounds = recipe.watch.bounds(recipe.stream.timeout)
    with watching(world, recipe.run, recipe.watch.on_hang, bounds) as watch:
        yield watch


def _train(
    recipe: Recipe, index: int, folder: RunFolder, init: Path | None, resume: str, request: StopRequest, watch: Watch
) -> Path:
    world, run = folder.world, folder.path
    on_first(world, read_run_record, run)  # refused before anything is built
    plan = StagePlan.resolve(recipe, index, world.size)
    beat(stage=index, step=0, micro=0, phase="build")
    setup = prepare_stage(plan, world, init=init, resume=resume)
    folder.begin()
    setup.store.claim = folder.claim
    setup = _follow(setup, on_first(world, set_aside, run, index, setup.start.state.step, plan.stage.steps))
    if resume == "never":
        on_first(world, mark_job, run, index)
    monitor = _monitor(recipe, index, world, watch, setup.start.state.step)
    try:
        together(world, attempt(describe, setup, monitor))
        together(world, attempt(monitor.facts, {"hosts": watch.hosts}))
        adapter = StageLoop(setup, monitor, request, ClusterMeter(world, watch.hosts), folder.check).run()
    except BaseException:
        with phase("save"):
            failure = attempt(monitor.close)
        if failure is not None:  # on one rank; what ends the run is said by all
            log.warning("the records of stage %s are not complete: %s", index, failure)
        raise
    else:
        with phase("save"):
            together(world, attempt(monitor.close))
        return adapter
    finally:
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


def _follow(setup: StageSetup, aside: Path | None) -> StageSetup:
    """``setup`` after an earlier run's files were moved to ``aside``, among them perhaps what it starts from."""
    source, run = setup.start.source, Path(setup.plan.recipe.run)
    if aside is None or source is None or source.exists() or not source.resolve().is_relative_to(run.resolve()):
        return setup
    moved = aside / source.resolve().relative_to(run.resolve())
    return replace(setup, start=replace(setup.start, source=moved))


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
