"""The seam between the trainer and the model families.

A family is data plus one forward (docs/architecture.md, idea 1). The trainer sees nothing of a family but the types of
this file: it builds the network of a stage, calls ``network(batch, progress)`` and weights what comes back.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from stagecoach.data.format.schema import SampleSchema
from stagecoach.data.streaming.windows import Window
from stagecoach.models.common.example_batch import random_batch
from stagecoach.models.common.licences import Part
from stagecoach.models.common.lora import PREFIX, export_lora
from stagecoach.models.common.materialise import OnLoaded, WeightSource, load_base, without_lora
from stagecoach.models.common.onnx_export import Component
from stagecoach.models.common.published import PublishedFile
from stagecoach.models.metrics.metric import Metric
from stagecoach.models.metrics.record import Record

if TYPE_CHECKING:  # they import this module
    from stagecoach.models.generation import Generation, GenerationOptions
    from stagecoach.models.weights import Weights

Batch = dict[str, Any]
"""Tensors of one micro-batch, each ``[B, ...]`` on the compute device, but for ``rng_key`` (int64 ``[B]``, on the CPU;
``models.common.keyed`` reads it) and ``key`` (a list of the B sample names)."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands. ``step`` counts optimizer steps of this stage from 0; ``training`` is False in validation.
    ``helpers`` are the frozen models of ``Family.helpers``, by its names, on the device of the batch."""

    step: int
    total_steps: int
    stage: int
    seed: int
    training: bool = True
    helpers: Mapping[str, nn.Module] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Schedule:
    """A number that depends on the step of a stage.

    ``linear`` and ``cosine`` go from ``start`` to ``end`` between the fractions ``begin`` and ``finish`` of the stage
    and are constant outside of them; ``step`` is ``end`` once ``has_started`` says so.
    """

    start: float
    end: float | None = None
    kind: Literal["constant", "linear", "cosine", "step"] = "constant"
    begin: float = 0.0
    finish: float = 1.0

    def at(self, progress: Progress) -> float:
        """The number at the step of ``progress``."""
        if self.kind == "constant" or self.end is None:
            return self.start
        if self.kind == "step":
            return self.end if has_started(self.begin, progress.step, progress.total_steps) else self.start
        first, last = self.begin * progress.total_steps, self.finish * progress.total_steps
        fraction = 1.0 if last <= first else min(max((progress.step - first) / (last - first), 0.0), 1.0)
        if self.kind == "cosine":
            fraction = 0.5 - 0.5 * math.cos(math.pi * fraction)
        return self.start + (self.end - self.start) * fraction


def has_started(begin: float, step: int, total_steps: int) -> bool:
    """Whether ``step`` is past the fraction ``begin`` of a stage. One comparison for losses and learning rates, so that
    they agree on the step."""
    return step >= begin * total_steps


@dataclass(frozen=True)
class LossTerm:
    """One entry of ``network(...)["losses"]`` and its weight in the step's loss."""

    name: str
    weight: Schedule


@dataclass(frozen=True)
class ExitCriterion:
    """What a finished stage should have reached; reported, never enforced. ``limit`` is the least value of ``metric``
    where higher is better, else the greatest."""

    metric: str
    limit: float


@dataclass(frozen=True)
class Trainable:
    """Modules that train in a stage. ``pattern`` is a dotted module name in which ``*`` stands for one part. Before the
    fraction ``start_fraction`` of the stage their learning rate is 0; then it is ``lr_scale`` times the stage's,
    reached over as many steps as the stage warms up."""

    pattern: str
    lr_scale: float = 1.0
    start_fraction: float = 0.0


@dataclass(frozen=True)
class AllowNoGradient:
    """Trainable parameters (``pattern`` over dotted names, ``*`` for any run of characters) that may get no gradient,
    for the ``reason`` given, before ``until_step`` (always, where it is None)."""

    pattern: str
    reason: str
    until_step: int | None = None


@dataclass(frozen=True)
class StageSpec:
    """A stage as a declaration: what trains, for which losses, and what it should reach."""

    index: int
    name: str
    trainable: tuple[Trainable, ...]
    losses: tuple[LossTerm, ...]
    exits: tuple[ExitCriterion, ...] = ()
    allow_no_gradient: tuple[AllowNoGradient, ...] = ()


def trainables(patterns: Iterable[str], lr_scale: float = 1.0, start_fraction: float = 0.0) -> tuple[Trainable, ...]:
    """One entry for each pattern, all alike."""
    return tuple(Trainable(pattern, lr_scale, start_fraction) for pattern in patterns)


def loss_terms(weights: Mapping[str, float | Schedule]) -> tuple[LossTerm, ...]:
    """Terms by name, with a constant weight or one that follows a schedule."""
    return tuple(LossTerm(n, w if isinstance(w, Schedule) else Schedule(w)) for n, w in weights.items())


class Family(ABC):
    """What the trainer asks of a model family. Stateless: each call gets the family's typed ``config``. A function that
    already stands in a module of the family becomes its method with ``staticmethod``."""

    name: ClassVar[str]
    config_type: ClassVar[type[BaseModel]]
    sizes: ClassVar[Mapping[str, BaseModel]]
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """Every metric of training and validation but the losses; exit criteria name one of them."""
    sampled_metrics: ClassVar[tuple[str, ...]] = ()
    """Names of ``models.metrics.registry`` that the records of ``sampled`` have, with weights or without."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Names that the family's users know, and the logged value that each stands for; logged next to it."""
    parts: ClassVar[Mapping[str, tuple[Part, ...]]] = {}
    """By size: the published weights that trained ones need, with their licences."""

    @abstractmethod
    def schema(self, config: BaseModel) -> SampleSchema:
        """Fields that a sample of this size must hold."""

    @abstractmethod
    def stages(self, config: BaseModel) -> tuple[StageSpec, ...]:
        """The stages in order; ``stages[i].index == i + 1``."""

    @abstractmethod
    def build(self, config: BaseModel, stage: int, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
        """The network of a stage: its own modules on ``device`` in fp32 at their initialisation (the same for every
        stage and rank), the frozen base on the meta device in ``dtype`` until ``load_base``.

        With ``device="meta"`` nothing is allocated; the planner counts on it.
        """

    @abstractmethod
    def open_base(self, config: Any) -> WeightSource:
        """Where the frozen weights are read from, checked by names and shapes, without reading them all. Raises
        ``ValueError`` naming the file and the names that are missing or left over."""

    def open_published(self, path: Path) -> PublishedFile | None:
        """Trained weights as the authors of the family's method published them; None where ``path`` holds none. Raises
        ``ValueError`` where they are not whole."""
        return None

    def check_start(self, config: Any, trained: Any) -> None:
        """Raise ``ValueError`` where weights that were trained at the config ``trained`` would compute something else
        at ``config``, which shapes do not tell."""
        return None

    def base_name(self, config: Any, name: str) -> str | None:
        """Where the network's tensor ``name`` stands in ``open_base``; None where it does not. The base is the network
        itself, or its child ``transformer``."""
        return without_lora(name).removeprefix(PREFIX)

    def load_base(
        self, network: nn.Module, config: Any, device: torch.device | str, on_loaded: OnLoaded | None = None
    ) -> str:
        """Fill all of ``network`` that is on the meta device (see ``materialise.load_base``) and return the sha256 that
        stands for the base. Raises ``ValueError`` as ``open_base``, and naming what stays on the meta device."""
        return load_base(network, self.open_base(config), partial(self.base_name, config), device, on_loaded)

    def check_base(self, config: Any) -> str:
        """A sentence on the base weights. Raises ``ValueError`` as ``open_base``."""
        return f"base {self.open_base(config).where}"

    def init_from_statistics(self, network: nn.Module, statistics: Mapping[str, Any]) -> None:
        """Set initial values that depend on the data, from the ``statistics`` of the training split's manifest,
        before an adapter or a checkpoint is loaded."""
        return None

    def adapter_file(self, name: str) -> str:
        """The file of an adapter, without its ending, that the parameter ``name`` is written to."""
        return "model"

    def helpers(
        self, config: BaseModel, stage: int, device: torch.device | str, dtype: torch.dtype
    ) -> dict[str, nn.Module]:
        """Frozen modules outside of the network (a VAE decoder, a face embedder). The trainer makes them once, keeps
        them outside of the engine, plain replicas on every rank, and hands them over in ``Progress.helpers``. On the
        meta device no file is read."""
        return {}

    @abstractmethod
    def example_sizes(self, config: Any, stage: int) -> Mapping[str, int]:
        """The length of each named dimension of the schema, at its largest in ``stage``."""

    def fixed_sizes(self, config: Any, stage: int) -> Mapping[str, int]:
        """The length that the recipe gives every sample along named dimensions of the schema; none where training
        takes the shards' sizes."""
        return {}

    def encoder_inputs(self, config: Any) -> Mapping[str, str | None]:
        """What the shards' encoders must have been given, by role, as their manifest says it (``input``; None: says
        nothing); roles that are not here may have been given anything."""
        return {}

    host_fields: ClassVar[tuple[str, ...]] = ()
    """Fields whose values a step reads on the host: they keep values where an example batch is on the meta device."""

    def fill_example(self, batch: Batch, config: Any) -> None:
        """Overwrite the random numbers of an example batch with content that the losses can digest."""
        return None

    def example_batch(self, config: Any, stage: int, samples: int, device: torch.device | str, seed: int) -> Batch:
        """A batch of ``samples`` random samples at full size, for the planner (on the meta device: shapes without
        values), benchmarks and tests."""
        sizes = self.example_sizes(config, stage)
        batch = random_batch(self.schema(config), sizes, samples, device, seed, stage, self.host_fields)
        self.fill_example(batch, config)
        return batch

    def recompute_units(self, network: nn.Module) -> Iterable[nn.Module]:
        """Modules whose forward may be run again in the backward instead of keeping its activations: as the network's
        method of this name says, none without one."""
        return getattr(network, "recompute_units", tuple)()

    def leaf_modules(self, network: nn.Module) -> Iterable[nn.Module]:
        """Modules that ZeRO-3 may gather as a whole (each called through ``__call__``, once per micro-step): as the
        network's method of this name says, none without one."""
        return getattr(network, "leaf_modules", tuple)()

    def preview(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, np.ndarray]:
        """Pictures of a held-out batch by name, uint8 ``[H, W, 3]``. Called on every rank with as many samples."""
        return {}

    def sampled(self, network: nn.Module, batch: Batch, progress: Progress) -> list[tuple[Record, Record]]:
        """What the network makes of each held-out sample of ``batch``, as previews show it, and the truth, by the
        sample's key. The network is called as often for each batch of one shape."""
        return []

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of all that validation may measure."""
        return (*(m.name for m in self.metrics if m.name.startswith("val_")), *self.sampled_metrics)

    def generation(self, weights: "Weights", options: "GenerationOptions") -> "Generation":
        """What answers requests for pictures or videos with trained ``weights`` of this family: here for LoRA on a
        ``transformer`` of diffusers, whose pipeline paints. Raises ``ValueError``, also where that is not so."""
        from stagecoach.models.common.picture_generation import PictureGeneration  # imports this module

        return PictureGeneration(weights, options)

    def record(self, arrays: Mapping[str, np.ndarray]) -> Record:
        """What the fields of a sample say of the truth. Raises ``ValueError`` where they hold none that generated
        samples are measured against."""
        raise ValueError(
            f"shards of family {self.name!r} hold no truth that samples are measured against, expected a folder "
            "of true videos or pictures, or a .jsonl file that lists them"
        )

    def diffusers_lora(self, config: Any, stage: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The LoRA among an adapter's ``tensors`` as ``load_lora_weights`` of diffusers' pipelines takes it, fp32, its
        scale in B. Raises ``ValueError`` where the network has none, the tensors do not hold all of it, or a pipeline
        would compute something else with it than the network does."""
        state = export_lora(self.build(config, stage, "meta", torch.float32), tensors)
        if not state:
            raise ValueError(
                f"family {self.name!r} trains no LoRA that a pipeline of diffusers could load; export its "
                "adapter as it is, with --to adapter"
            )
        return state

    def onnx_components(self, config: Any, stage: int) -> Mapping[str, Component]:
        """What of the network and around it may be an ONNX file by itself, by name: the decoder of a VAE of pictures,
        where the family has no other. Transformers of billions are beyond what runtimes of ONNX take."""
        from stagecoach.models.common.onnx_vae import picture_decoder  # diffusers' VAEs, which nothing else needs here

        return {"vae_decoder": picture_decoder}

    def window(self, config: Any, stage: int, step: int, total_steps: int, epoch: int) -> Window | None:
        """The window of each clip that optimizer step ``step`` of a stage takes, None for whole samples. It may grow
        with the steps or the epochs, and never shrinks."""
        return None

    @abstractmethod
    def validate(
        self, network: nn.Module, batch: Batch, progress: Progress, statistics: Mapping[str, Any]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums and counts (fp32 scalars) by metric name over a held-out batch, with noise and timesteps fixed per
        sample. ``statistics`` are those of the training split's manifest, from which baselines are made."""
