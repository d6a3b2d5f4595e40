"""Exponential moving average of the trainable weights, sharded like the optimizer.

It lives on each rank's fp32 master partition, so one update is one ``lerp_`` per group without traffic.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import deepspeed
import torch

from stagecoach.trainer.engine import master_partitions, push_masters


class Ema:
    def __init__(self, engine: deepspeed.DeepSpeedEngine, decay: float) -> None:
        self.engine = engine
        self.decay = decay
        self.shadows = [p.detach().clone() for p in master_partitions(engine)]

    @torch.no_grad()
    def update(self) -> None:
        """Call after each optimizer step that was not skipped."""
        for shadow, master in zip(self.shadows, master_partitions(self.engine), strict=True):
            shadow.lerp_(master, 1.0 - self.decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Averaged weights in the engine for the time of the block; every rank enters it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for shadow, master in zip(self.shadows, master_partitions(self.engine), strict=True):
            kept = master.detach().clone()
            master.data.copy_(shadow)
            shadow.copy_(kept)
        push_masters(self.engine)
