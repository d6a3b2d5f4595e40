"""What a recipe will cost, before anything is allocated: parameters, FLOPs, memory, traffic, time.

Networks are built on the meta device, and FLOPs and activations are counted in a step that runs there (``meter.py``).
The memory of states and the traffic between GPUs are those of DeepSpeed 0.19's ZeRO: with T trained parameters
in B bytes each, gradients reduced in R bytes and accumulated in A bytes, N ranks and a accumulation steps, a rank holds
and moves per optimizer step

    ZeRO-1   weights B T     gradients B T (+ 4 T accumulated in fp32)   master weights and Adam 12 T / N   2 R T + B T
    ZeRO-2   weights B T     gradients A T / N                           12 T / N                    2 R T a + B T
    ZeRO-3   weights B P / N gradients A T / N                           12 T / N                    (r B P + R T) a

where P is what the engine holds (T, or with ``frozen: shard`` the whole network) and r how often ZeRO-3 gathers a
weight in a micro-step: one at position x of the forward is used again after 2 (P - x) elements and stays if that is
within ``stage3_max_reuse_distance`` D, so min(P, D / 2) elements stay and r = 2 - min(P, D / 2) / P. Traffic is in
ring bytes per GPU, and no part of it is taken to hide behind the computation.
"""

from dataclasses import dataclass
from typing import Any

import torch

from stagecoach.models.trainable import freeze
from stagecoach.trainer.ds_config import read_ds_config
from stagecoach.trainer.freeze import freeze_table
from stagecoach.trainer.hardware import MEMORY_BANDWIDTH, PEAK_BF16
from stagecoach.trainer.planning.meter import StepCosts, step_costs
from stagecoach.trainer.recipe import Recipe
from stagecoach.trainer.stage_plan import DTYPES, StagePlan

MEMORY = {
    "H20": 96e9,
    "H200": 141e9,
    "H100": 80e9,
    "H800": 80e9,
    "A100": 80e9,
    "A800": 80e9,
    "B200": 180e9,
    "L40S": 48e9,
    "4090": 24e9,
}
"""Bytes by GPU (vendor data sheets)."""
POLICIES = ("none", "selective", "full")
OPTIONS = ((1, "replicate"), (2, "replicate"), (3, "replicate"), (3, "shard"))
"""(ZeRO stage, frozen weights): what a recipe can choose from."""


@dataclass(frozen=True)
class Cluster:
    """What the plan is for. ``gpus`` None: as many as take one micro-batch each. ``utilisation``: the part of the peak
    rate that executed FLOPs, recompute included, reach. ``bandwidth``: ring bytes per second of one GPU; 160 GB/s is
    0.8 of four 400 Gb/s adapters per node."""

    gpus: int | None = None
    gpu: str = "H20"
    utilisation: float = 0.4
    bandwidth: float = 160e9


@dataclass(frozen=True)
class Sizes:
    """Elements that train and are frozen, bytes of the frozen ones as they lie in memory, bytes of a trained one."""

    trained: int
    frozen: int
    frozen_bytes: int
    width: int


def plan(recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    """The plan of every stage of ``recipe``, fit for JSON. Raises ``ValueError`` where the GPUs do not divide a global
    batch, as the run would."""
    return {
        "family": recipe.family,
        "size": recipe.size,
        "profile": recipe.profile,
        "gpu": cluster.gpu,
        "utilisation": cluster.utilisation,
        "bandwidth_bytes_per_second": cluster.bandwidth,
        "zero": recipe.zero,
        "frozen": recipe.frozen,
        "activation_checkpointing": recipe.activation_checkpointing,
        "precision": recipe.precision,
        "stages": {str(index): plan_stage(recipe, index, cluster) for index in sorted(recipe.stages)},
    }


def plan_stage(recipe: Recipe, index: int, cluster: Cluster) -> dict[str, Any]:
    """Parameters, FLOPs per sample, bytes per GPU by part, and time of one stage. FLOP = 2 multiply-adds."""
    resolved = StagePlan.resolve(recipe, index, cluster.gpus)
    stage, spec, batching = resolved.stage, resolved.spec, resolved.batching
    gpus, family, config = batching.world_size, resolved.family, resolved.config
    network = family.build(config, index, "meta", DTYPES[recipe.precision])
    freeze(network, spec)
    sizes = measure(network, DTYPES[recipe.precision].itemsize)
    costs = step_costs(resolved, batching.micro)
    flops, kept = flops_per_sample(costs), activation_bytes(costs)

    executed = batching.local * flops["by_activation_checkpointing"][recipe.activation_checkpointing]
    compute = executed / (PEAK_BF16[cluster.gpu] * cluster.utilisation)
    options = []
    for zero, frozen in OPTIONS:
        changed = recipe.model_copy(
            update={"zero": zero, "frozen": frozen, "ds_config": recipe.ds_config if zero == recipe.zero else None}
        )
        ds_config = read_ds_config(changed)
        memory = {
            **state_bytes(sizes, zero, frozen, gpus, ds_config),
            "activations": kept[recipe.activation_checkpointing],
        }
        traffic = traffic_bytes(sizes, zero, frozen, batching.accumulation, ds_config) if gpus > 1 else 0.0
        total = sum(memory.values())
        options.append(
            {
                "zero": zero,
                "frozen": frozen,
                "memory_bytes": {**memory, "total": total},
                "traffic_bytes": traffic,
                "step_seconds": compute + traffic / cluster.bandwidth,
                "fits": total <= MEMORY[cluster.gpu],
            }
        )
    chosen = next(o for o in options if (o["zero"], o["frozen"]) == (recipe.zero, recipe.frozen))
    hours = stage.steps * chosen["step_seconds"] / 3600
    return {
        "name": spec.name,
        "steps": stage.steps,
        "gpus": gpus,
        "global_batch": stage.global_batch,
        "micro_batch": batching.micro,
        "accumulation": batching.accumulation,
        "trainable": sizes.trained,
        "frozen": sizes.frozen,
        "modules": module_counts(network, spec),
        "flops_per_sample": flops,
        "memory_bytes": chosen["memory_bytes"],
        "activation_bytes": kept,
        "activation_parts": activation_parts(costs),
        "elementwise": elementwise(costs, recipe.activation_checkpointing, batching.accumulation, cluster.gpu),
        "traffic_bytes": chosen["traffic_bytes"],
        "compute_seconds": compute,
        "step_seconds": chosen["step_seconds"],
        "mfu": batching.local * flops["training"] / (PEAK_BF16[cluster.gpu] * chosen["step_seconds"]),
        "hours": hours,
        "gpu_hours": hours * gpus,
        "options": options,
        "advice": advice(options, chosen, cluster.gpu),
    }


def measure(network: torch.nn.Module, width: int) -> Sizes:
    """Sizes of a network whose ``requires_grad`` says what trains; ``width``: bytes of a trained weight in use."""
    frozen = [p for p in network.parameters() if not p.requires_grad]
    return Sizes(
        sum(p.numel() for p in network.parameters() if p.requires_grad),
        sum(p.numel() for p in frozen),
        sum(p.numel() * p.element_size() for p in frozen),
        width,
    )


def module_counts(network: torch.nn.Module, spec: Any) -> dict[str, dict[str, Any]]:
    """The freeze table by module pattern: modules, trainable and frozen parameters, learning rate factor."""
    counts: dict[str, dict[str, Any]] = {}
    for row in freeze_table(network, spec):
        entry = counts.setdefault(
            row.pattern,
            {
                "modules": row.modules,
                "trainable": 0,
                "frozen": 0,
                "lr_scale": None,
                "start_fraction": row.start_fraction,
            },
        )
        entry["frozen" if row.lr_scale is None else "trainable"] += row.parameters
        entry["lr_scale"] = entry["lr_scale"] if row.lr_scale is None else row.lr_scale
    return counts


def flops_per_sample(costs: StepCosts) -> dict[str, Any]:
    """Return FLOPs of one sample, fit for JSON.

    ``forward`` and ``training`` (forward and backward, nothing recomputed), each also as ``_parts`` by ``linear``
    (matrix products and convolutions) and ``attention``; ``by_activation_checkpointing``: training with what each
    policy runs again; ``modules``: a row for each that has FLOPs.
    """
    forward, training = (
        {
            kind: sum(getattr(amount, kind) for row in costs.rows for amount in directions(row)) / costs.samples
            for kind in ("linear", "attention")
        }
        for directions in (lambda row: (row.forward,), lambda row: (row.forward, row.backward))
    )
    modules = [
        {
            "module": row.module,
            "kind": row.kind,
            "linear": row.forward.linear / costs.samples,
            "attention": row.forward.attention / costs.samples,
            "forward": row.forward.flops / costs.samples,
            "training": (row.forward + row.backward).flops / costs.samples,
        }
        for row in costs.rows
    ]
    return {
        "forward": sum(forward.values()),
        "training": sum(training.values()),
        "forward_parts": forward,
        "training_parts": training,
        "by_activation_checkpointing": {policy: costs.flops(policy) / costs.samples for policy in POLICIES},
        "modules": [row for row in modules if row["training"]],
    }


def activation_bytes(costs: StepCosts) -> dict[str, int]:
    """Return the bytes of a micro-batch's activations when the backward begins, by recompute policy. Recomputed units
    keep their inputs (and attention outputs), and one of them at a time all the rest."""
    return {policy: getattr(costs.kept, policy) for policy in POLICIES}


def activation_parts(costs: StepCosts) -> dict[str, int]:
    """Return what the bytes under recompute are made of: ``outside`` of units, ``boundaries`` of units, ``attention``
    outputs inside them (``selective`` keeps these), and the ``largest_unit`` while ``full`` runs it again."""
    return {part: getattr(costs.kept, part) for part in ("outside", "boundaries", "attention", "largest_unit")}


def elementwise(costs: StepCosts, policy: str, accumulation: int, gpu: str) -> dict[str, Any]:
    """Return what a GPU reads and writes in an optimizer step besides matrix products, and whether that or arithmetic
    would take longer at the full rates of ``gpu``: ``bound`` is ``memory`` or ``arithmetic``."""
    moved = accumulation * costs.traffic(policy)
    seconds, arithmetic = moved / MEMORY_BANDWIDTH[gpu], accumulation * costs.flops(policy) / PEAK_BF16[gpu]
    return {
        "bytes": moved,
        "seconds": seconds,
        "arithmetic_seconds": arithmetic,
        "bound": "memory" if seconds > arithmetic else "arithmetic",
    }


def state_bytes(sizes: Sizes, zero: int, frozen: str, ranks: int, ds_config: dict[str, Any]) -> dict[str, float]:
    """Bytes per GPU of everything but activations, by part."""
    section, T, B = ds_config["zero_optimization"], sizes.trained, sizes.width
    R, A = _reduced(ds_config, B), _accumulated(ds_config, B)
    held = _held(sizes, frozen)
    bucket = min(section.get("reduce_bucket_size", 5e8), T) * (B + (R if R != B else 0))
    bucket *= 2 if section.get("overlap_comm", zero == 3) else 1
    split = ranks if zero == 3 else 1
    parts = {
        "frozen": sizes.frozen_bytes / (ranks if frozen == "shard" else 1),
        "trainable": B * T / split,
        "gradients": A * T / ranks if zero > 1 else B * T + (A * T if A != B else 0),
        "master_weights_and_adam": 12 * T / ranks,
        "buckets": bucket,
    }
    if section.get("offload_optimizer", {}).get("device", "none") != "none":
        parts["master_weights_and_adam"] = 0.0
    if zero == 3 and ranks > 1:
        prefetch = min(section.get("stage3_prefetch_bucket_size", 5e7), held)
        parts["gathered"] = B * min(_staying(section, held) + prefetch, held)
        if section.get("zero_hpz_partition_size", 1) > 1:
            parts["gathered"] += B * held / section["zero_hpz_partition_size"]
    return parts


def traffic_bytes(sizes: Sizes, zero: int, frozen: str, accumulation: int, ds_config: dict[str, Any]) -> float:
    """Ring bytes that a GPU sends per optimizer step."""
    section, T, B = ds_config["zero_optimization"], sizes.trained, sizes.width
    R = _reduced(ds_config, B)
    if zero < 3:
        return 2 * R * T * (accumulation if zero == 2 else 1) + B * T
    held = _held(sizes, frozen)
    gathers = 2 - _staying(section, held) / held
    return (gathers * B * held + R * T) * accumulation


def advice(options: list[dict[str, Any]], chosen: dict[str, Any], gpu: str) -> str:
    """One sentence: which option would be fastest, by how much, and what it takes."""

    def name(option: dict[str, Any]) -> str:
        return f"ZeRO-{option['zero']} with frozen weights {option['frozen'].removesuffix('e')}ed"

    fitting = [o for o in options if o["fits"]]
    if not fitting:
        least = min(options, key=lambda o: o["memory_bytes"]["total"])
        total, kept = (least["memory_bytes"][part] / 1e9 for part in ("total", "activations"))
        return (
            f"Nothing fits into the {MEMORY[gpu] / 1e9:.0f} GB of an {gpu}: {name(least)} takes least, {total:.1f} "
            f"GB, {kept:.1f} GB of it activations; lower micro_batch or the clip, or take "
            f"activation_checkpointing: full."
        )
    best = min(fitting, key=lambda o: o["step_seconds"])
    gained = chosen["step_seconds"] - best["step_seconds"]
    memory = (
        f"{best['memory_bytes']['total'] / 1e9:.1f} GB a GPU instead of {chosen['memory_bytes']['total'] / 1e9:.1f}"
    )
    if not chosen["fits"]:
        return f"{name(chosen)} does not fit; {name(best)} would be the fastest that does, with {memory}."
    if gained <= 1e-4 * chosen["step_seconds"]:
        return (
            f"{name(chosen)}, which the recipe chooses, is as fast as any that fits, at "
            f"{chosen['step_seconds']:.3g} s a step."
        )
    return (
        f"{name(best)} would be fastest: {gained:.3g} s ({gained / chosen['step_seconds']:.1%}) less than the "
        f"{chosen['step_seconds']:.3g} s a step of {name(chosen)}, with {memory}."
    )


def _held(sizes: Sizes, frozen: str) -> int:
    """Elements that the engine partitions."""
    return sizes.trained + (sizes.frozen if frozen == "shard" else 0)


def _staying(section: dict[str, Any], held: int) -> float:
    """Elements that ZeRO-3 keeps gathered from forward to backward."""
    return min(held, section.get("stage3_max_reuse_distance", 1e9) / 2)


def _reduced(ds_config: dict[str, Any], width: int) -> int:
    return {"fp32": 4, "fp16": 2, "bf16": 2}.get(ds_config.get("communication_data_type", ""), width)


def _accumulated(ds_config: dict[str, Any], width: int) -> int:
    return {"fp32": 4, "fp16": 2, "bf16": 2}.get(ds_config.get("data_types", {}).get("grad_accum_dtype", ""), width)
