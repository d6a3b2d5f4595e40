"""Damaged samples that were replaced, counted over all ranks against what the recipe allows."""

from collections.abc import Iterable

import torch.distributed as dist

from stagecoach.data.streaming.stream import BadSample
from stagecoach.trainer.distributed import World


class BadSampleError(ValueError):
    """More of the data set is damaged than the recipe allows."""


class BadSamples:
    """``indices`` of the distinct samples found so far in this stage, in earlier attempts too (``known``)."""

    def __init__(self, known: Iterable[int], part: float, total: int) -> None:
        self.indices = set(known)
        self.part, self.total = part, total

    def gather(self, mine: list[BadSample], world: World) -> list[BadSample]:
        """What is new on any rank, in the order of uid. A collective."""
        lists: list[list[BadSample]] = [[] for _ in range(world.size)]
        dist.all_gather_object(lists, mine)
        new = []
        for sample in sorted((sample for found in lists for sample in found), key=lambda sample: sample.uid):
            if sample.index not in self.indices:
                self.indices.add(sample.index)
                new.append(sample)
        return new

    def check(self, last: BadSample) -> None:
        """Raise ``BadSampleError`` above the limit, alike on all ranks."""
        if len(self.indices) > self.part * self.total:
            raise BadSampleError(
                f"{len(self.indices)} of {self.total:,} samples are damaged, expected at most a part of {self.part:g} "
                f"(stream.bad_samples), the last {last.key!r} of {last.shard}: {last.reason}; run build_shards.py "
                "check and repair"
            )
