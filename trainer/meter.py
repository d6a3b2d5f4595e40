"""Sums and counts over the samples of a step, and the clock: cheap every step, reduced over ranks only when logging."""

import time

import torch
from torch import Tensor

from stagecoach.trainer.distributed import World, sum_over_ranks


class Meter:
    """Collects losses and metrics between two log lines. Nothing leaves the device until ``reduce``."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.waited = 0.0
        self.steps = 0
        self.samples = 0
        self.started = time.monotonic()

    @torch.no_grad()
    def add(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add a sum and a count (scalars)."""
        total = total.detach().to(torch.float32)
        count = torch.as_tensor(count, dtype=torch.float32, device=total.device)
        if name in self.sums:
            self.sums[name] += total
            self.counts[name] += count
        else:
            self.sums[name], self.counts[name] = total.clone(), count.clone()

    def add_output(self, output: dict, total: Tensor) -> None:
        """Add a network's output and the weighted total ``[B]`` of its losses."""
        self.add("loss", total.sum(), len(total))
        for name, values in output["losses"].items():
            self.add(f"loss/{name}", values.sum(), len(values))
        for name, (value, count) in output["metrics"].items():
            self.add(name, value, count)

    def reduce(self) -> dict[str, float]:
        """Means over all ranks since the last call, then empty. Every rank calls it, with the same names; a name whose
        count is zero everywhere is left out."""
        names = sorted(self.sums)
        means = {}
        if names:
            table = torch.stack([torch.stack([self.sums[n], self.counts[n]]) for n in names])
            for name, (total, count) in zip(names, sum_over_ranks(table).tolist(), strict=True):
                if count > 0:
                    means[name] = total / count
        self.sums, self.counts = {}, {}
        return means

    def rates(self) -> dict[str, float]:
        """Seconds per step, samples/s over all ranks and the share of time that waited for data since then."""
        elapsed = time.monotonic() - self.started
        rates = {
            "step_seconds": elapsed / max(1, self.steps),
            "samples_per_second": self.samples / elapsed,
            "data_wait": self.waited / elapsed,
        }
        self.started, self.waited, self.steps, self.samples = time.monotonic(), 0.0, 0, 0
        return rates
