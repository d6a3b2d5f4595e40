"""One list of requests for all ranks: each takes the next one when it is free. They meet in the store of the
process group alone, as a collective would have to wait for the longest request."""

import itertools
import time
from collections.abc import Callable

import torch.distributed as dist

from stagecoach.trainer.distributed import World
from stagecoach.trainer.interrupt import Interrupted, StopRequest

POLL = 0.2
"""Seconds between two looks at whether the others are ready."""


_lists = itertools.count()


class SharedQueue:
    """Of one list; every rank makes as many, in the same order. ``on_progress`` gets the number of requests that are
    finished, on rank 0."""

    def __init__(self, world: World, stop: StopRequest, on_progress: Callable[[int], None]) -> None:
        self.world, self.stop, self.on_progress = world, stop, on_progress
        # The store in which the ranks have met; torch has no public name for it.
        self.store = dist.PrefixStore(f"requests/{next(_lists)}", dist.distributed_c10d._get_default_store())

    def take(self) -> int:
        """The number of a request that nobody else takes, from 0."""
        return self.store.add("taken", 1) - 1

    def finish(self, count: int = 1) -> None:
        """So many requests are finished."""
        self.store.add("finished", count)
        self._show()

    def check(self) -> None:
        """Raise ``Interrupted`` where a rank was asked to stop. Called between steps."""
        if self.stop.received:
            self.store.add("stopped", 1)
        self._show()
        if self.store.add("stopped", 0):
            raise Interrupted("stopped on request; what was answered is kept, and the same command goes on")

    def meet(self) -> bool:
        """Wait until all ranks are here. Returns whether one was asked to stop."""
        self.store.add("here", 1)
        while self.store.add("here", 0) < self.world.size:
            self._show()
            time.sleep(POLL)
        self._show()
        return self.store.add("stopped", 0) > 0

    def _show(self) -> None:
        if self.world.is_first:
            self.on_progress(self.store.add("finished", 0))
