"""All that can be known to be wrong with a run before a GPU is busy: one line per check."""

import ast
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from stagecoach.data.builders import describe_statistics
from stagecoach.data.files import MANIFEST
from stagecoach.data.format.shards import read_manifest
from stagecoach.data.paths import expand_path
from stagecoach.data.stores.opening import open_storage
from stagecoach.data.streaming.dataset import ShardSet, verify_shards
from stagecoach.data.streaming.mixture import check_inputs, check_sizes
from stagecoach.models.common.attention import resolve_backend
from stagecoach.models.trainable import trained_before
from stagecoach.models.weights.network import load_tensors
from stagecoach.trainer.planning.planner import Cluster, plan_stage
from stagecoach.trainer.recipe import ROOT, Recipe
from stagecoach.trainer.stage_plan import DTYPES, StagePlan
from stagecoach.trainer.start_point import open_start, start_source


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, whether it is in order, and the sentence."""

    name: str
    ok: bool
    message: str


class CheckError(ValueError):
    """A check failed; the message is its sentence."""


def preflight(
    recipe: Recipe, *, stages: list[int], init: Path | None = None, gpus: int | None = None, full: bool = False
) -> Iterator[Check]:
    """Checks of a run of ``stages`` in this order. ``init``: the weights that the first of them starts from. ``gpus``:
    the world size that batches must divide into. ``full`` reads every shard and compares its sha256."""
    yield Check(
        "recipe",
        True,
        f"{recipe.family} {recipe.size}, stages {', '.join(map(str, stages))}, {recipe.deepspeed_file().name}",
    )
    init = None if init is None else Path(expand_path(str(init)))
    try:
        plans = {i: StagePlan.resolve(recipe, i) for i in stages}
        planned = {i: plan_stage(recipe, i, Cluster()) for i in stages}
    except ValueError as error:  # without batches there is nothing to plan
        yield Check("batches", False, str(error))
        return
    try:
        planned = {i: plan_stage(recipe, i, Cluster(gpus)) for i in stages} if gpus else planned
        yield Check(
            "batches",
            True,
            "; ".join(
                f"stage {i}: {p['global_batch']} samples = {p['gpus']} GPUs x {p['micro_batch']} x {p['accumulation']}"
                for i, p in planned.items()
            ),
        )
    except ValueError as error:
        yield Check("batches", False, str(error))
    users: dict[str, dict[int, StagePlan]] = {}
    for i, plan in plans.items():
        for source in recipe.stage_sources(i):
            users.setdefault(source.path, {})[i] = plan
    for path, using in users.items():
        only = f" of stage {', '.join(map(str, using))}" if len(using) < len(plans) else ""
        for split in ("train", "val"):
            yield _run(f"{split} shards{only}", _shards, using, path, split, full)
    yield _run("base weights", _base, plans)
    for position, index in enumerate(stages):
        if index > 1 or (init and position == 0):
            before = None if position == 0 else stages[position - 1]
            yield _run(f"hand-off to stage {index}", _handoff, plans[index], before, init if position == 0 else None)
    yield _run("disk", _disk, recipe, planned)
    yield _run("device", _device, planned)
    yield _run("attention", _attention, recipe)
    yield _run("versions", _versions)


def _run(name: str, function: Callable[..., str], *args: Any) -> Check:
    try:
        return Check(name, True, function(*args))
    except (ValueError, OSError) as error:
        return Check(name, False, " ".join(str(error).split()))


def _shards(plans: dict[int, StagePlan], path: str, split: str, full: bool) -> str:
    storage = open_storage(path).child(split)
    if split == "val" and not storage.exists(MANIFEST):
        return f"{storage.url} is not there, so nothing is validated or shown in pictures"
    for schema in dict.fromkeys(plan.schema for plan in plans.values()):
        problems = verify_shards(storage, schema, hashes=full)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise CheckError(problems[0] + more)
        shards = ShardSet.open(storage, schema)
        shards.read(len(shards) - 1)
        for plan in plans.values():
            check_sizes(shards, plan.family.fixed_sizes(plan.config, plan.index))
            check_inputs(shards, plan.family.encoder_inputs(plan.config))
    looked = "all hashes agree" if full else "sizes and indices agree (--full compares hashes)"
    found = f"{storage.url}: {len(shards):,} samples in {len(shards.shard_sizes)} shards, {looked}, one sample decoded"
    manifest = read_manifest(storage)
    described = describe_statistics(manifest.schema["name"], manifest.statistics)
    return "; ".join([found, *(f"{name}: {_words(value)}" for name, value in described.items())])


def _words(value: object) -> str:
    return ", ".join(f"{name} {number}" for name, number in value.items()) if isinstance(value, dict) else str(value)


def _base(plans: dict[int, StagePlan]) -> str:
    return "; ".join(dict.fromkeys(plan.family.check_base(plan.config) for plan in plans.values()))


def _handoff(plan: StagePlan, before: int | None, init: Path | None) -> str:
    index = plan.index
    source = start_source(plan, init)
    if source is None:
        return f"stage {index} starts from the base, without what stages before it train"
    if before is not None and not source.exists():
        if before != index - 1:
            raise CheckError(
                f"{source}: missing, expected the adapter of stage {index - 1}, which is not among the "
                "stages to run; train it first or name one with --init"
            )
        return f"stage {before} of this run will leave it in {source}"
    # The base's hash is compared when it is loaded; to know it now, all of it would have to be read.
    weights = open_start(plan, source, init)
    network, card = plan.family.build(plan.config, index, "meta", plan.dtype), weights.card
    load_tensors(weights.files, network, trained_before(network, plan.specs, card.stage + 1), source, assign=None)
    return f"{source}: {card.parameters:,} parameters of stage {card.stage} ({card.stage_name}), intact and complete"


def _disk(recipe: Recipe, planned: dict[int, dict[str, Any]]) -> str:
    """Checkpoints hold fp32 weights, Adam's two moments and maybe an average; one more than is kept lies there while it
    is written. Adapters hold what all stages so far have trained, in fp32."""
    run = Path(recipe.run).absolute()
    needed = 0
    for index, stage_plan in planned.items():
        count = stage_plan["trainable"]
        each = count * (12 + (4 if recipe.ema else 0))
        stage = recipe.stages[index]
        kept = min(recipe.keep_checkpoints + 1, -(-stage.steps // stage.checkpoint_every))
        there = sum(p.stat().st_size for p in (run / f"stage{index}").rglob("*") if p.is_file())
        needed += max(0, each * kept + 4 * count - there)
    existing = next(p for p in (run, *run.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    sentence = (
        f"{free / 1e9:,.1f} GB free at {existing}, the run will write {needed / 1e9:,.1f} GB "
        f"({recipe.keep_checkpoints} checkpoints a stage are kept)"
    )
    if needed > free:
        raise CheckError(f"{sentence}; free some, name another --run or lower keep_checkpoints")
    return sentence


def _device(planned: dict[int, dict[str, Any]]) -> str:
    if not torch.cuda.is_available():
        if os.environ.get("DS_ACCELERATOR") == "cpu":
            return "no GPU, and DS_ACCELERATOR=cpu asks for none"
        raise CheckError(
            "no GPU is visible here, expected one; run this on a node that has them, or set "
            "DS_ACCELERATOR=cpu to train on CPUs"
        )
    count, first = torch.cuda.device_count(), torch.cuda.get_device_properties(0)
    needed = max(stage["memory_bytes"]["total"] for stage in planned.values())
    sentence = f"{count} x {first.name}, {first.total_memory / 1e9:.0f} GB, of which the plan takes {needed / 1e9:.1f}"
    if needed > first.total_memory:
        raise CheckError(f"{sentence}; see plan for what would fit")
    return sentence


def _attention(recipe: Recipe) -> str:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = resolve_backend(recipe.attention, device, DTYPES[recipe.precision])
    return f"{recipe.attention} is {backend.value} here"


def _versions() -> str:
    """Installed packages against the tested lower bounds of setup.py."""
    problems, wanted = [], requirements()
    for requirement in wanted:
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed, expected {requirement.specifier}")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement.name} is {found}, expected {requirement.specifier}")
    if problems:
        raise CheckError("; ".join(problems) + "; install with `make install`, or `pip install` the package again")
    return f"{len(wanted)} packages are at least as new as setup.py asks for"


def requirements() -> list[Requirement]:
    """What the package needs, without its extras: by the setup.py of a checkout, without running it, or by what the
    installed package's metadata keeps of it."""
    file = ROOT / "setup.py"
    if not file.exists():
        listed = importlib.metadata.requires("stagecoach") or []
        return [requirement for requirement in map(Requirement, listed) if requirement.marker is None]
    tree = ast.walk(ast.parse(file.read_text()))
    found = next(node.value for node in tree if isinstance(node, ast.keyword) and node.arg == "install_requires")
    return [Requirement(text) for text in ast.literal_eval(found)]
