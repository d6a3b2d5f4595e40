"""What the ranks tell each other with a log line: one small gather to rank 0."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from stagecoach.trainer.distributed import World
from stagecoach.trainer.watch.collectives import waited
from stagecoach.trainer.watch.heartbeat import sensors
from stagecoach.trainer.watch.view import ClusterReducer, ClusterView

log = logging.getLogger(__name__)


class ClusterMeter:
    """``hosts`` by rank. Every rank calls ``gather`` at each log line."""

    def __init__(self, world: World, hosts: Sequence[str]) -> None:
        self.world, self.reducer = world, ClusterReducer(hosts)
        self.started = time.monotonic()

    def gather(self, steps: int, data_wait: float, memory_gib: float) -> ClusterView | None:
        """The view on rank 0, None elsewhere. ``steps`` since the last call, ``data_wait`` is a share of the time."""
        seconds = time.monotonic() - self.started
        collective = waited(steps, seconds)
        row = [seconds / max(steps, 1), collective / max(steps, 1), data_wait, memory_gib, *sensors()]
        mine = torch.tensor(row, dtype=torch.float64, device=self.world.device)
        rows = [torch.empty_like(mine) for _ in range(self.world.size)] if self.world.is_first else None
        dist.gather(mine, rows, dst=0)
        self.started = time.monotonic()
        if rows is None:
            return None
        try:
            return self.reducer.reduce(torch.stack(rows).cpu().tolist())
        except Exception:  # of rank 0 alone; numbers for people are no reason to stop a cluster
            log.exception("no numbers by rank and node for this line")
            return None
