"""Validation and previews on held-out samples, with the same number of forwards on all ranks."""

from collections.abc import Iterator, Mapping
from typing import Any

import deepspeed
import numpy as np
import torch

from stagecoach.data.outputs.moving import Video
from stagecoach.data.streaming.mixture import DatasetMixture
from stagecoach.data.streaming.stream import fixed_batches
from stagecoach.data.streaming.windows import Window
from stagecoach.models.family import Family, Progress
from stagecoach.trainer.distributed import World
from stagecoach.trainer.feed import to_device, with_keys
from stagecoach.trainer.meter import Meter
from stagecoach.trainer.recipe import Recipe
from stagecoach.trainer.sampled import SampledMetrics, shown
from stagecoach.trainer.watch.heartbeat import beat


def rank_share(samples: int, rank: int, size: int) -> tuple[list[int], list[bool]]:
    """Indices that a rank evaluates and which of them count: all ranks get equally many, the last ones padded by
    repeating an index that then does not count."""
    rounds = -(-samples // size)
    mine = [r * size + rank for r in range(rounds)]
    return [min(i, samples - 1) for i in mine], [i < samples for i in mine]


class Evaluator:
    """Runs a family's ``validate`` and ``preview`` through the engine's root module."""

    def __init__(
        self,
        family: Family,
        network: torch.nn.Module,
        engine: deepspeed.DeepSpeedEngine,
        held_out: DatasetMixture,
        statistics: Mapping[str, Any],
        world: World,
        window: Window | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        self.family, self.network, self.engine = family, network, engine
        self.held_out, self.statistics, self.world, self.window = held_out, statistics, world, window
        # As in training, clips that are too short for the window are left out.
        parts, _ = held_out.members(None if window is None else window.span)
        members = [item for part in parts for item in part.items()]
        self.buckets = len({bucket for bucket, _ in members})
        self.usable = sorted(int(index) for _, part in members for index in part.indices)
        self.samples, self.pictures = 0, 0
        self.own: set[str] | None = None
        """Names of the family's metrics that are logged, None for all."""
        self.sampled: SampledMetrics | None = None
        if recipe is not None:
            asked = recipe.validation
            self.samples = recipe.validation_samples if asked.samples is None else asked.samples
            self.pictures = recipe.preview_samples
            self.sampled = SampledMetrics(recipe, world.device)
            if asked.metrics is not None:
                chosen = [metric for metric in family.metrics if metric.name in asked.metrics]
                self.own = {name for metric in chosen for name in (metric.name, metric.baseline) if name}

    @torch.no_grad()
    def validate(self, progress: Progress, micro: int) -> tuple[dict[str, float], dict[str, np.ndarray | Video]]:
        """Means over the first held-out samples (all of them where there are fewer), and what some of the sampled ones
        look like. Of the family's own metrics those that are asked for."""
        samples, meter = min(self.samples, len(self.usable)), Meter(self.world)
        drawn: dict[str, np.ndarray | Video] = {}
        self.engine.module.eval()
        if self.own is None or self.own:
            self._own(meter, progress, samples, micro)
        if self.sampled is not None and self.sampled.names:
            drawn = self._sampled(self.sampled, meter, progress, samples)
        self._leave()
        return meter.reduce(), drawn

    def _own(self, meter: Meter, progress: Progress, samples: int, micro: int) -> None:
        """``micro`` at a time where all samples are of one bucket and that divides them evenly over the ranks, else one
        by one."""
        size = micro if self.buckets == 1 and samples % (self.world.size * micro) == 0 else 1
        parts, counts = rank_share(samples // size, self.world.rank, self.world.size)
        indices = [self.usable[part * size + i] for part in parts for i in range(size)]
        for batch, counted in zip(self._batches(indices, size), counts, strict=True):
            result = self.engine.module(
                self.network, self._ready(batch, progress), progress, self.statistics, run=self.family.validate
            )
            beat()
            for name, (total, count) in result.items():
                if self.own is None or name in self.own:
                    meter.add(name, total * counted, count * counted)

    def _sampled(
        self, metrics: SampledMetrics, meter: Meter, progress: Progress, samples: int
    ) -> dict[str, np.ndarray | Video]:
        """One by one, shared out over the ranks; where samples differ in length, all ranks sample all of them and the
        first one counts, since the network is called once per step and context. Pictures are those of this rank."""
        parts, counts = rank_share(samples, self.world.rank, self.world.size)
        if self.buckets != 1:
            parts, counts = list(range(samples)), [self.world.is_first] * samples
        pictures: dict[str, np.ndarray | Video] = {}
        indices = [self.usable[part] for part in parts]
        for batch, counted in zip(self._batches(indices, 1), counts, strict=True):
            pairs = self.engine.module(self.network, self._ready(batch, progress), progress, run=self.family.sampled)
            beat()
            metrics.add(meter, pairs, counted)
            for generated, true in pairs:
                if len(pictures) < self.pictures and (picture := shown(generated, true)) is not None:
                    pictures[f"{generated.name}-sampled"] = picture
        return pictures

    @torch.no_grad()
    def preview(self, progress: Progress, samples: int) -> dict[str, np.ndarray]:
        """Pictures of the first held-out samples. All ranks draw the same ones, so that all call the same modules."""
        indices = self.usable[:samples]
        self.engine.module.eval()
        pictures: dict[str, np.ndarray] = {}
        for batch in self._batches(indices, 1):
            beat()
            pictures.update(
                self.engine.module(self.network, self._ready(batch, progress), progress, run=self.family.preview)
            )
        self._leave()
        return pictures

    def _batches(self, indices: list[int], size: int) -> Iterator[dict[str, Any]]:
        return fixed_batches(self.held_out, indices, size, window=self.window)

    def _ready(self, batch: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return to_device(with_keys(batch, progress.seed, progress.stage), self.world.device)

    def _leave(self) -> None:
        self.engine.module.train()
        if self.engine.zero_optimization_stage() == 3:
            # An eval forward leaves its last parameters gathered.
            self.engine.empty_partition_cache()
