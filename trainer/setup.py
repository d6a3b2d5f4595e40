"""What a stage needs before its first step: data, network, engine, and the point to go on from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_module
from torch import nn

from stagecoach.data.files import sha256_json
from stagecoach.data.streaming.mixture import DatasetMixture, check_inputs
from stagecoach.data.streaming.plan import SamplePlan
from stagecoach.data.streaming.stream import Stream
from stagecoach.models.common.attention import resolve_backend, set_backend
from stagecoach.models.trainable import freeze, trained_before
from stagecoach.models.weights.network import load_tensors
from stagecoach.models.weights.opening import Weights
from stagecoach.trainer.activation_checkpointing import apply_activation_checkpointing
from stagecoach.trainer.adapter import assign_gathered
from stagecoach.trainer.checkpointing.restore import restore
from stagecoach.trainer.checkpointing.state import TrainingState
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.distributed import World, on_first
from stagecoach.trainer.ema import Ema
from stagecoach.trainer.engine import deepspeed_config, parameter_groups, start_engine
from stagecoach.trainer.finished import decisive_settings
from stagecoach.trainer.run_folder import checkpoint_store
from stagecoach.trainer.stage_plan import StagePlan
from stagecoach.trainer.start_point import find_checkpoint, open_start, start_source
from stagecoach.trainer.subset import engine_module
from stagecoach.trainer.waiting import waiting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageData:
    """The samples of a stage: those to train on with their order, and those held out."""

    train: DatasetMixture
    order: SamplePlan
    held_out: DatasetMixture | None

    @classmethod
    def open(cls, plan: StagePlan) -> StageData:
        """Raises ``DamagedError``, ``SchemaError`` and ``ValueError`` where the shards do not fit the plan."""
        recipe, options = plan.recipe, plan.recipe.stream
        sources, sizes = recipe.stage_sources(plan.index), plan.family.fixed_sizes(plan.config, plan.index)
        train = DatasetMixture.open(sources, "train", plan.schema, recipe.cache)
        held_out = DatasetMixture.open_where_there(sources, "val", plan.schema, recipe.cache)
        expected = {role: encoder.model_dump(exclude_none=True) for role, encoder in recipe.encoders.items()}
        for part in (train, held_out):
            if part is not None:
                part.check_encoders(expected)
                part.check_sizes(sizes)
                for shards in part.sets:
                    check_inputs(shards, plan.family.encoder_inputs(plan.config))
        windows = [plan.window(step, len(train)) for step in (0, plan.stage.steps - 1)]
        shortest = max((window.span for window in windows if window is not None), default=None)
        members, short = train.members(shortest)
        if short:
            log.info(
                f"{short:,} of {len(train):,} samples are left out: their clips are shorter than {shortest} frames"
            )
        order = SamplePlan(
            members,
            global_batch=plan.stage.global_batch,
            seed=recipe.seed,
            weights=train.weights,
            active_shards=options.active_shards,
            drop_last=options.drop_last,
        )
        if len(order.buckets) > 1:
            counted = zip(order.buckets, order.sizes, strict=True)
            log.info(
                f"{len(order.buckets)} buckets of {', '.join(train.bucket_dims(shortest is not None))}: "
                + ", ".join(f"{'x'.join(map(str, bucket))} ({size:,})" for bucket, size in counted)
            )
        if order.left_out:
            log.info(
                f"{order.left_out:,} of {sum(order.sizes):,} samples are left out of each epoch, others in each "
                f"(stream.drop_last: true)"
            )
        return cls(train, order, held_out)

    def fingerprint(self, active_shards: int) -> str:
        """Of the training samples and all that their order depends on besides seed and global batch."""
        if not active_shards and not self.order.drop_last:
            return self.train.fingerprint
        return sha256_json(
            [self.train.fingerprint, {"active_shards": active_shards, "drop_last": self.order.drop_last}]
        )


@dataclass(frozen=True)
class StageEngine:
    """The network and what trains it."""

    network: nn.Module
    deepspeed: deepspeed.DeepSpeedEngine
    trainable: dict[str, nn.Parameter]
    """By the network's names."""
    helpers: dict[str, nn.Module]
    """Frozen models outside of the network, which no engine sees."""
    ema: Ema | None


@dataclass(frozen=True)
class StartPoint:
    """What a stage goes on from."""

    state: TrainingState
    base: str
    """The hash that stands for the base weights."""
    predecessor: Weights | None
    source: Path | None
    """Where the predecessor lies."""
    settings: dict[str, Any]
    """What of the recipe and the data decides the result of the stage."""

    @property
    def origin(self) -> dict[str, Any]:
        """``AdapterCard.started_from``."""
        found = self.predecessor
        if found is None:
            return {}
        warm = found.stage == self.state.stage
        return {"adapter": str(self.source), "stage": found.stage, "sha256": found.sha256, "warm_start": warm}


@dataclass(frozen=True)
class StageSetup:
    """A stage that is ready to train at ``start.state.step``."""

    plan: StagePlan
    data: StageData
    engine: StageEngine
    start: StartPoint
    store: CheckpointStore
    world: World

    def stream(self, start: int, stop: int) -> Stream:
        options = self.plan.recipe.stream
        return Stream(
            self.data.train,
            plan=self.data.order,
            batching=self.plan.batching,
            rank=self.world.rank,
            start_step=start,
            stop_step=stop,
            workers=options.workers,
            prefetch=options.prefetch,
            timeout=options.timeout,
            window=lambda step: self.plan.window(step, len(self.data.train)),
        )


def prepare_stage(
    plan: StagePlan, world: World, *, init: Path | None, resume: str, rehearsal: bool = False
) -> StageSetup:
    """Build a stage and load what it goes on from. Every rank calls it.

    ``init``: the weights to start from, of the previous stage or of this one, which is a warm start (None: the adapter
    of the previous stage in the same run; ``BASE``: none). ``resume``: ``auto``, ``never`` or the path of a checkpoint.
    A ``rehearsal`` (dry run) starts from initial values where the stage before has not been trained yet. What can be
    known to be wrong by then is said before the network is built.
    """
    recipe, family, index = plan.recipe, plan.family, plan.index
    with waiting(f"the shards of stage {index} to be opened"):
        data = StageData.open(plan)
    predecessor, source = None, start_source(plan, init)
    if source is not None:
        if rehearsal and init is None and not on_first(world, source.exists):
            log.info(f"stage {index} is rehearsed from initial values: there is no {source} yet")
            source = None
        else:
            with waiting(f"the weights in {source} to be checked"):
                predecessor = on_first(world, open_start, plan, source, init)
            log.info(f"stage {index} starts from the {predecessor.describe()}")

    network, base = build_network(plan, world)
    trained = freeze(network, plan.spec)
    family.init_from_statistics(network, data.train.statistics)
    if predecessor is not None:
        predecessor.check_base(base)
        expected = trained_before(network, plan.specs, predecessor.stage + 1)
        with waiting(f"the weights in {source} to be loaded"):
            load_tensors(predecessor.files, network, expected, source, assign_gathered)

    state = TrainingState(
        family=family.name,
        size=recipe.size,
        stage=index,
        step=0,
        world_size=world.size,
        zero=recipe.zero,
        precision=recipe.precision,
        frozen=recipe.frozen,
        global_batch=plan.stage.global_batch,
        seed=recipe.seed,
        shards=data.fingerprint(recipe.stream.active_shards),
        started_from=predecessor.sha256 if predecessor else None,
        order=data.order.order_version,
    )
    store = checkpoint_store(recipe.run, index, recipe.keep_checkpoints)
    with waiting(f"the checkpoints in {store.directory} to be checked"):
        checkpoint = find_checkpoint(store, resume, state, plan.stage.steps, world)

    apply_activation_checkpointing(family.recompute_units(network), recipe.activation_checkpointing)
    if recipe.leaf_modules:
        for module in family.leaf_modules(network):
            mark_leaf(module)
    with waiting("DeepSpeed's engine to start"):
        engine = start_engine(
            engine_module(network, recipe.frozen),
            parameter_groups(network, trained, recipe.optimizer),
            deepspeed_config(plan),
        )
    ema = Ema(engine, recipe.ema.decay) if recipe.ema else None
    if checkpoint is not None:
        path, found = checkpoint
        with waiting(f"{path} to be restored"):
            restore(engine, network, path, found, ema, world)
        state = replace(state, step=found.step, skipped=found.skipped, bad=found.bad)
        other = (found.world_size, found.zero) != (world.size, recipe.zero)
        log.info(
            f"resumed {path} at step {found.step}"
            + (f" (written by {found.world_size} ranks, ZeRO-{found.zero})" if other else "")
        )
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    with waiting("the frozen helpers to be loaded"):
        helpers = plan.helpers(world.device)
    return StageSetup(
        plan=plan,
        data=data,
        engine=StageEngine(network, engine, trainable, helpers, ema),
        start=StartPoint(state, base, predecessor, source, decisive_settings(plan, state.shards, state.started_from)),
        store=store,
        world=world,
    )


def build_network(plan: StagePlan, world: World) -> tuple[nn.Module, str]:
    """The network of a stage with its base weights in place, and the hash that stands for these."""
    family, shard = plan.family, plan.recipe.frozen == "shard"
    backend = resolve_backend(plan.recipe.attention, world.device, plan.dtype)
    # Block by block: each is partitioned as soon as its weights are there, so that no rank ever holds them all.
    device = torch.device("cpu") if shard else world.device
    on_loaded = partition_on_arrival(plan) if shard else None
    with waiting("the network to be built"):
        network = family.build(plan.config, plan.index, device, plan.dtype)
    with waiting("the base weights to be loaded"):
        base = family.load_base(network, plan.config, device, on_loaded)
    for module in network.modules() if shard else ():  # partitioning moves parameters alone
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(world.device)
    set_backend(network, backend)
    return network, base


def mark_leaf(module: nn.Module) -> None:
    """Let ZeRO-3 gather ``module`` as a whole, which saves host time. Called before the engine sets its hooks.

    Behind a frozen stem no input of a leaf requires grad; its post-backward hook would then fire early and release
    weights that are still needed. So one input is made to.
    """

    def require_grad(module: nn.Module, args: tuple) -> tuple:
        floating = [i for i, a in enumerate(args) if torch.is_tensor(a) and a.is_floating_point()]
        if torch.is_grad_enabled() and floating and not any(args[i].requires_grad for i in floating):
            first = floating[0]
            args = (*args[:first], args[first].detach().requires_grad_(), *args[first + 1 :])
        return args

    set_z3_leaf_module(module, True)
    module.register_forward_pre_hook(require_grad)


def partition_on_arrival(plan: StagePlan) -> Callable[[nn.Module], None]:
    """A function that partitions a unit over the ranks with ``zero.Init``, as ZeRO-3 will use it."""
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    if plan.recipe.precision != "fp32":
        config[plan.recipe.precision] = {"enabled": True}

    def on_loaded(unit: nn.Module) -> None:
        deepspeed.zero.Init(module=unit, config_dict_or_path=config, dtype=plan.dtype)

    return on_loaded
