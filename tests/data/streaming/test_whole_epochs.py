"""Each sample once an epoch, at the sizes of real sets, over ranks that come and go."""

import time
from collections import Counter
from itertools import cycle, pairwise

import numpy as np
import pytest

from stagecoach.data.streaming.plan import Members, SamplePlan
from stagecoach.data.streaming.stream import Batching, Stream

WORLDS = (2, 1, 4, 8)
SIZES = [(10_001, 2_003), (10_001, 2_003, 997), (5, 3_001, 64), (4_099,)]


def cut(sizes, first=0):
    """A set: of each bucket so many samples, in shards of up to 500."""
    members = {}
    for number, size in enumerate(sizes):
        shards = (*[500] * (size // 500), *[size % 500] * (size % 500 > 0))
        members[(number,)] = Members(shards, np.arange(first, first + size))
        first += size
    return members


def seen_by_ranks(plan, start, stop):
    """What all ranks see, the world size changing every 7 steps, as after a resume on other nodes."""
    seen = []
    worlds = cycle(WORLDS)
    for first in range(start, stop, 7):
        batching = Batching(plan.global_batch, 2, next(worlds))
        for rank in range(batching.world_size):
            stream = Stream(
                None, plan=plan, batching=batching, rank=rank, start_step=first, stop_step=min(first + 7, stop)
            )
            for step in range(stream.start_step, stream.stop_step):
                for micro in range(batching.accumulation):
                    seen += [plan.locate(step, slot) for slot in stream.slots(micro)]
    return seen


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("batch", "active_shards"), [(8, 0), (64, 3)])
def test_an_epoch_holds_each_sample_once_and_the_tails_of_the_next(sizes, batch, active_shards):
    plan = SamplePlan([cut(sizes)], global_batch=batch, seed=0, active_shards=active_shards)
    counts, begin = np.zeros(sum(sizes), int), 0
    ends = np.cumsum([0, *sizes])
    for epoch in range(1, 4):
        end = sum(-(-epoch * size // batch) for size in sizes)
        counts += np.bincount(seen_by_ranks(plan, begin, end), minlength=len(counts))
        begin = end
        for first, last in pairwise(ends):
            bucket = counts[first:last]
            assert bucket.min() >= epoch
            assert bucket.max() - bucket.min() <= 1
            assert bucket.sum() - epoch * len(bucket) < batch


@pytest.mark.parametrize("sizes", SIZES)
def test_an_epoch_without_tails_holds_each_sample_at_most_once(sizes):
    sizes = [size for size in sizes if size >= 64]
    plan = SamplePlan([cut(sizes)], global_batch=64, seed=0, drop_last=True)
    steps = sum(size // 64 for size in sizes)
    for epoch in range(3):
        seen = seen_by_ranks(plan, epoch * steps, (epoch + 1) * steps)
        assert len(set(seen)) == len(seen) == sum(sizes) - plan.left_out


@pytest.mark.parametrize("weights", [(0.9, 0.1), (0.2, 0.8)])
def test_weighted_sets_give_their_shares_and_all_of_a_cell_before_any_of_it_again(weights):
    sets = [cut((2_003, 401)), cut((997, 53, 1_201), 2_404)]
    owner = {
        index: (number, bucket)
        for number, members in enumerate(sets)
        for bucket, part in members.items()
        for index in part.indices.tolist()
    }
    plan = SamplePlan(sets, global_batch=8, seed=0, weights=weights)
    drawn: dict[tuple, list[int]] = {}
    for step in range(2_500):
        for slot in range(8):
            index = plan.locate(step, slot)
            drawn.setdefault(owner[index], []).append(index)
    sizes = Counter(owner.values())
    for cell, indices in drawn.items():
        for first in range(0, len(indices), sizes[cell]):
            through = indices[first : first + sizes[cell]]
            assert len(set(through)) == len(through)
    for number, weight in enumerate(weights):
        share = sum(len(indices) for cell, indices in drawn.items() if cell[0] == number) / 20_000
        assert share == pytest.approx(weight, abs=0.01)


def test_a_step_costs_as_much_far_along_and_in_large_sets_as_at_the_start():
    def seconds(plan, step):
        """The shortest of five times that 100 steps, of one block, took."""
        times = []
        for go in range(5):
            began = time.perf_counter()
            for s in range(step + 1000 * go, step + 1000 * go + 100):
                plan.locate(s, 0)
            times.append(time.perf_counter() - began)
        return min(times)

    small = SamplePlan([cut((101, 23, 7))], global_batch=8, seed=0)
    large = SamplePlan([cut((1_000_003, 200_003, 7))], global_batch=8, seed=0)
    first = seconds(small, 0)
    assert seconds(large, 0) < 5 * first + 0.01
    assert seconds(large, 10**12) < 5 * first + 0.01
