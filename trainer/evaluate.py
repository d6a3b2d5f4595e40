"""Validation and previews on held-out samples, with the same number of forwards on all ranks."""

from collections.abc import Iterator, Mapping
from typing import Any

import deepspeed
import numpy as np
import torch

from stagecoach.data.streaming.mixture import DatasetMixture
from stagecoach.data.streaming.stream import fixed_batches
from stagecoach.data.streaming.windows import Window
from stagecoach.models.family import Family, Progress
from stagecoach.trainer.distributed import World
from stagecoach.trainer.feed import to_device, with_keys
from stagecoach.trainer.meter import Meter
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
    ) -> None:
        self.family, self.network, self.engine = family, network, engine
        self.held_out, self.statistics, self.world, self.window = held_out, statistics, world, window
        # As in training, clips that are too short for the window are left out.
        parts, _ = held_out.members(None if window is None else window.span)
        members = [item for part in parts for item in part.items()]
        self.buckets = len({bucket for bucket, _ in members})
        self.usable = sorted(int(index) for _, part in members for index in part.indices)

    @torch.no_grad()
    def validate(self, progress: Progress, samples: int, micro: int) -> dict[str, float]:
        """Means over the first ``samples`` held-out samples (all of them where there are fewer), ``micro`` at a time
        where they are all of one bucket and that divides them evenly over the ranks, else one by one."""
        samples = min(samples, len(self.usable))
        size = micro if self.buckets == 1 and samples % (self.world.size * micro) == 0 else 1
        parts, counts = rank_share(samples // size, self.world.rank, self.world.size)
        indices = [self.usable[part * size + i] for part in parts for i in range(size)]
        meter = Meter(self.world)
        self.engine.module.eval()
        for batch, counted in zip(self._batches(indices, size), counts, strict=True):
            result = self.engine.module(
                self.network, self._ready(batch, progress), progress, self.statistics, run=self.family.validate
            )
            beat()
            for name, (total, count) in result.items():
                meter.add(name, total * counted, count * counted)
        self._leave()
        return meter.reduce()

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
