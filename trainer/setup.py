"""What a stage needs before its first step: data, network, engine, and the point to go on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_module
from torch import nn

from stagecoach.data.files import sha256_json
from stagecoach.data.streaming.mixture import DatasetMixture
from stagecoach.data.streaming.plan import SamplePlan
from stagecoach.data.streaming.stream import Batching, Stream
from stagecoach.data.streaming.windows import Window
from stagecoach.models import get_family
from stagecoach.models.common.attention import resolve_backend, set_backend
from stagecoach.models.family import Family, StageSpec
from stagecoach.trainer.activation_checkpointing import apply_activation_checkpointing
from stagecoach.trainer.adapter import AdapterCard, check_predecessor, load_tensors, read_card, trained_before
from stagecoach.trainer.checkpoint import (
    CheckpointStore,
    TrainingState,
    check_resumable,
    needs_universal,
    read_state,
    restore,
)
from stagecoach.trainer.distributed import World, on_first
from stagecoach.trainer.ema import Ema
from stagecoach.trainer.engine import DTYPES, deepspeed_config, parameter_groups, start_engine
from stagecoach.trainer.freeze import freeze
from stagecoach.trainer.recipe import Recipe, StageRecipe
from stagecoach.trainer.subset import engine_module


def stage_directory(run: Path, stage: int) -> Path:
    return run / f"stage{stage}"


def adapter_directory(run: Path, stage: int) -> Path:
    return stage_directory(run, stage) / "adapter"


@dataclass
class StageSetup:
    """A stage that is ready to train at ``state.step``."""

    recipe: Recipe
    stage: StageRecipe
    spec: StageSpec
    specs: tuple[StageSpec, ...]
    family: Family
    config: Any
    network: nn.Module
    engine: deepspeed.DeepSpeedEngine
    trainable: dict[str, nn.Parameter]
    batching: Batching
    train_set: DatasetMixture
    plan: SamplePlan
    held_out: DatasetMixture | None
    ema: Ema | None
    store: CheckpointStore
    state: TrainingState
    base: str
    predecessor: AdapterCard | None
    source: Path | None
    """Folder of the predecessor."""
    world: World

    def stream(self, start: int, stop: int) -> Stream:
        options = self.recipe.stream
        return Stream(
            self.train_set,
            plan=self.plan,
            batching=self.batching,
            rank=self.world.rank,
            start_step=start,
            stop_step=stop,
            workers=options.workers,
            prefetch=options.prefetch,
            timeout=options.timeout,
            window=self.window,
        )

    def window(self, step: int) -> Window | None:
        return window_at(self.family, self.config, self.spec.index, self.stage, len(self.train_set), step)


def window_at(family: Family, config: Any, index: int, stage: StageRecipe, samples: int, step: int) -> Window | None:
    """The window of optimizer step ``step`` in a training set of so many ``samples``."""
    return family.window(config, index, step, stage.steps, step * stage.global_batch // samples)


def open_data(
    recipe: Recipe, index: int, family: Family, config: Any, tell: Callable[[str], None]
) -> tuple[DatasetMixture, SamplePlan, DatasetMixture | None]:
    """Training samples with their order, and held-out samples, of stage ``index``."""
    schema, stage = family.schema(config), recipe.stages[index]
    train_set = DatasetMixture.open(recipe.sources, "train", schema, recipe.cache)
    held_out = DatasetMixture.open(recipe.sources, "val", schema, recipe.cache)
    expected = {role: encoder.model_dump(exclude_none=True) for role, encoder in recipe.encoders.items()}
    for part in (train_set, held_out):
        if part is not None:
            part.check_encoders(expected)
    windows = [
        window
        for step in (0, stage.steps - 1)
        if (window := window_at(family, config, index, stage, len(train_set), step)) is not None
    ]
    shortest = max((window.span for window in windows), default=None)
    members, short = train_set.members(shortest)
    if short:
        tell(f"{short:,} of {len(train_set):,} samples are left out: their clips are shorter than {shortest} frames")
    plan = SamplePlan(
        members,
        global_batch=stage.global_batch,
        seed=recipe.seed,
        weights=train_set.weights,
        active_shards=recipe.stream.active_shards,
        drop_last=recipe.stream.drop_last,
    )
    if len(plan.buckets) > 1:
        tell(
            f"{len(plan.buckets)} buckets of {', '.join(train_set.bucket_dims(bool(windows)))}: "
            + ", ".join(
                f"{'x'.join(map(str, bucket))} ({size:,})"
                for bucket, size in zip(plan.buckets, plan.sizes, strict=True)
            )
        )
    if plan.left_out:
        tell(
            f"{plan.left_out:,} of {sum(plan.sizes):,} samples are left out of each epoch, others in each "
            f"(stream.drop_last: true)"
        )
    return train_set, plan, held_out


def data_fingerprint(recipe: Recipe, train_set: DatasetMixture) -> str:
    """Of the training samples and all that their order depends on besides seed and global batch."""
    order = {"active_shards": recipe.stream.active_shards, "drop_last": recipe.stream.drop_last}
    if order == {"window": 0, "drop_last": False}:
        return train_set.fingerprint
    return sha256_json([train_set.fingerprint, order])


def prepare_stage(
    recipe: Recipe,
    index: int,
    world: World,
    *,
    init: Path | None,
    resume: str,
    tell: Callable[[str], None] = print,
    rehearsal: bool = False,
) -> StageSetup:
    """Build stage ``index`` and load what it goes on from. Every rank calls it.

    ``init``: the adapter to start from (None: that of the previous stage in the same run). ``resume``: ``auto``,
    ``never`` or the path of a checkpoint. A ``rehearsal`` (dry run) starts from first values where the stage before has
    not been trained yet. What can be known to be wrong by then is said before the network is built.
    """
    family = get_family(recipe.family)
    config = recipe.family_config(index)
    specs = family.stages(config)
    spec, stage = specs[index - 1], recipe.stages[index]
    batching = Batching(stage.global_batch, stage.micro_batch, world.size)
    train_set, plan, held_out = open_data(recipe, index, family, config, tell)

    run = Path(recipe.run)
    predecessor, source = None, None
    if index > 1:
        source = init or adapter_directory(run, index - 1)
        if rehearsal and init is None and not on_first(world, source.exists):
            tell(f"stage {index} is rehearsed from first values: there is no {source} yet")
        else:
            predecessor = on_first(world, read_card, source)

    network, base = build_network(recipe, family, config, index, world)
    trained = freeze(network, spec)
    family.init_from_statistics(network, train_set.statistics)
    if predecessor is not None:
        check_predecessor(predecessor, source, family=family.name, size=recipe.size, stage=index, base=base)
        load_tensors(source, network, trained_before(network, specs, index))

    state = TrainingState(
        family=family.name,
        size=recipe.size,
        stage=index,
        step=0,
        world_size=world.size,
        zero=recipe.zero,
        precision=recipe.precision,
        frozen=recipe.frozen,
        global_batch=stage.global_batch,
        seed=recipe.seed,
        shards=data_fingerprint(recipe, train_set),
        started_from=predecessor.sha256 if predecessor else None,
    )
    store = CheckpointStore(stage_directory(run, index) / "checkpoints", recipe.keep_checkpoints)
    checkpoint = find_checkpoint(store, resume, state, world, tell)

    apply_activation_checkpointing(family.recompute_units(network), recipe.activation_checkpointing)
    if recipe.leaf_modules:
        for module in family.leaf_modules(network):
            mark_leaf(module)
    universal = checkpoint is not None and needs_universal(checkpoint[1], state)
    engine = start_engine(
        engine_module(network, recipe.frozen),
        parameter_groups(network, trained, recipe),
        deepspeed_config(recipe, stage, batching, universal),
    )
    ema = Ema(engine, recipe.ema.decay) if recipe.ema else None
    if checkpoint is not None:
        path, found = checkpoint
        restore(engine, network, path, universal, ema, world)
        state = replace(state, step=found.step, skipped=found.skipped, bad=found.bad)
        tell(
            f"resumed {path} at step {found.step}"
            + (f" (converted from {found.world_size} ranks, ZeRO-{found.zero})" if universal else "")
        )
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    return StageSetup(
        recipe,
        stage,
        spec,
        specs,
        family,
        config,
        network,
        engine,
        trainable,
        batching,
        train_set,
        plan,
        held_out,
        ema,
        store,
        state,
        base,
        predecessor,
        source if predecessor else None,
        world,
    )


def build_network(recipe: Recipe, family: Family, config: Any, index: int, world: World) -> tuple[nn.Module, str]:
    """The network of a stage with its base weights in place, and the hash that stands for these."""
    dtype = DTYPES[recipe.precision]
    backend = resolve_backend(recipe.attention, world.device, dtype)
    if recipe.frozen == "shard":
        # Block by block: each is partitioned as soon as its weights are there, so that no rank ever holds them all.
        on_loaded = partition_on_arrival(recipe, dtype)
        network = family.build(config, index, "cpu", dtype)
        base = family.load_base(network, config, "cpu", on_loaded)
    else:
        network = family.build(config, index, world.device, dtype)
        base = family.load_base(network, config, world.device)
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


def partition_on_arrival(recipe: Recipe, dtype: torch.dtype):
    """A function that partitions a unit over the ranks with ``zero.Init``, as ZeRO-3 will use it."""
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    if recipe.precision != "fp32":
        config[recipe.precision] = {"enabled": True}

    def on_loaded(unit: nn.Module) -> None:
        deepspeed.zero.Init(module=unit, config_dict_or_path=config, dtype=dtype)

    return on_loaded


def find_checkpoint(
    store: CheckpointStore, resume: str, expected: TrainingState, world: World, tell
) -> tuple[Path, TrainingState] | None:
    """The checkpoint to go on from and its state, decided by rank 0 for all."""

    def find() -> tuple[Path, TrainingState] | None:
        if resume == "never":
            return None
        path = store.newest_valid(tell) if resume == "auto" else Path(resume)
        if path is None:
            return None
        state = read_state(path)
        check_resumable(path, state, expected)
        return path, state

    return on_first(world, find)
