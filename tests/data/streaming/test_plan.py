"""Which samples make up the global batches: buckets, epochs, weights, and what stands in for a bad sample."""

import time
from collections import Counter
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stagecoach.data.streaming.plan import ATTEMPTS, Members, SamplePlan

properties = settings(max_examples=60, deadline=None)
counts_of_shards = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@st.composite
def data_sets(draw, most=3):
    """Data sets over up to three buckets, samples numbered through; in a set the buckets' samples interleave."""
    sets, first = [], 0
    for _ in range(draw(st.integers(1, most))):
        buckets = draw(st.dictionaries(st.sampled_from([(8, 8), (8, 12), (16, 8)]), counts_of_shards, min_size=1))
        total = sum(map(sum, buckets.values()))
        places = draw(st.permutations(range(first, first + total)))
        members, used = {}, 0
        for bucket, shards in buckets.items():
            members[bucket] = Members(tuple(shards), np.array(sorted(places[used : used + sum(shards)]), np.int64))
            used += sum(shards)
        sets.append(members)
        first += total
    return sets


def bucket_of(sets):
    return {int(index): bucket for members in sets for bucket, part in members.items() for index in part.indices}


def batch(plan, step):
    return [plan.locate(step, place) for place in range(plan.global_batch)]


@properties
@given(
    sets=data_sets(),
    seed=st.integers(0, 99),
    batch_size=st.integers(1, 9),
    active_shards=st.integers(0, 3),
    weighted=st.booleans(),
    step=st.integers(0, 10**9),
)
def test_all_samples_of_a_batch_are_of_the_step_s_bucket(sets, seed, batch_size, active_shards, weighted, step):
    weights = [1.0 + number for number in range(len(sets))] if weighted else None
    plan = SamplePlan(sets, global_batch=batch_size, seed=seed, weights=weights, active_shards=active_shards)
    buckets = bucket_of(sets)
    for s in range(step, step + 3):
        assert {buckets[index] for index in batch(plan, s)} == {plan.bucket(s)}


def assert_once_each_before_any_twice(seen, indices):
    """``seen`` so many times through ``indices``, each time all of them before the first one of the next time."""
    size = len(indices)
    for first in range(0, len(seen), size):
        through = seen[first : first + size]
        assert len(set(through)) == len(through)
        assert set(through) <= set(indices.tolist())


@properties
@given(
    sets=data_sets(),
    seed=st.integers(0, 99),
    batch_size=st.integers(1, 9),
    active_shards=st.integers(0, 3),
    epochs=st.integers(1, 5),
)
def test_wrapping_gives_each_sample_once_an_epoch(sets, seed, batch_size, active_shards, epochs):
    """In the order of the steps, whatever the buckets: none twice before its bucket is through; and where an epoch's
    draws end, each bucket has been drawn from as often as it has samples, but for its batches that reach over."""
    plan = SamplePlan(sets, global_batch=batch_size, seed=seed, active_shards=active_shards)
    total, indices = (
        sum(plan.sizes),
        {bucket: group[0] for bucket, group in zip(plan.buckets, plan._indices, strict=True)},
    )
    over = batch_size * (1 + ceil(log2(len(plan.sizes))) / 2)
    seen = {bucket: [] for bucket in plan.buckets}
    ends = {ceil(epoch * total / batch_size): epoch for epoch in range(1, epochs + 1)}
    for step in range(max(ends)):
        seen[plan.bucket(step)] += batch(plan, step)
        if step + 1 in ends:
            for bucket, size in zip(plan.buckets, plan.sizes, strict=True):
                assert abs(len(seen[bucket]) - ends[step + 1] * size) <= over
    for bucket in plan.buckets:
        assert_once_each_before_any_twice(seen[bucket], indices[bucket])


@pytest.mark.parametrize(("sizes", "batch_size"), [((10_001, 2_003), 8), ((997, 61, 9), 16), ((5_000, 5_000, 3), 64)])
def test_the_draws_of_an_epoch_leave_out_and_repeat_less_than_a_batch_of_each_bucket(sizes, batch_size):
    members, first = {}, 0
    for number, size in enumerate(sizes):
        members[(number,)] = Members((size,), np.arange(first, first + size))
        first += size
    plan = SamplePlan([members], global_batch=batch_size, seed=0)
    buckets = bucket_of([members])
    for epoch in range(3):
        begin, end = (ceil(e * first / batch_size) for e in (epoch, epoch + 1))
        counts = Counter(index for step in range(begin, end) for index in batch(plan, step))
        for bucket, part in members.items():
            unseen = sum(index not in counts for index in part.indices.tolist())
            extra = sum(n - 1 for index, n in counts.items() if buckets[index] == bucket)
            assert unseen <= 2 * batch_size
            assert extra <= 2 * batch_size
    if sizes == (10_001, 2_003):
        counts = Counter(index for step in range(1500) for index in batch(plan, step))
        assert (first - len(counts), max(counts.values())) == (4, 1)


@properties
@given(
    sets=data_sets(),
    seed=st.integers(0, 99),
    batch_size=st.integers(1, 9),
    weights=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    steps=st.integers(1, 150),
)
def test_mixed_sets_repeat_no_sample_before_those_of_its_set_and_bucket_are_through(
    sets, seed, batch_size, weights, steps
):
    plan = SamplePlan(sets, global_batch=batch_size, seed=seed, weights=weights[: len(sets)])
    cell = {
        index: (number, bucket)
        for number, members in enumerate(sets)
        for bucket, part in members.items()
        for index in part.indices.tolist()
    }
    seen = {}
    for step in range(steps):
        for index in batch(plan, step):
            seen.setdefault(cell[index], []).append(index)
    for (number, bucket), drawn in seen.items():
        assert_once_each_before_any_twice(drawn, sets[number][bucket].indices)


@properties
@given(
    sets=data_sets(),
    seed=st.integers(0, 99),
    batch_size=st.integers(1, 5),
    active_shards=st.integers(0, 3),
    epoch=st.integers(0, 5),
)
def test_dropping_gives_each_sample_at_most_once_an_epoch_and_counts_the_rest(
    sets, seed, batch_size, active_shards, epoch
):
    sizes = Counter(bucket_of(sets).values())
    assume(min(sizes.values()) >= batch_size)
    plan = SamplePlan(sets, global_batch=batch_size, seed=seed, active_shards=active_shards, drop_last=True)
    steps = sum(size // batch_size for size in sizes.values())
    seen = [index for step in range(epoch * steps, (epoch + 1) * steps) for index in batch(plan, step)]
    assert len(set(seen)) == len(seen) == sum(sizes.values()) - plan.left_out
    assert plan.left_out == sum(size % batch_size for size in sizes.values())


def test_what_dropping_leaves_out_changes_from_epoch_to_epoch():
    members = {(): Members((10,), np.arange(10))}
    plan = SamplePlan([members], global_batch=4, seed=1, drop_last=True)
    left = [
        frozenset(range(10)) - {i for step in (2 * epoch, 2 * epoch + 1) for i in batch(plan, step)}
        for epoch in range(20)
    ]
    assert all(len(out) == 2 for out in left)
    assert len(set(left)) > 5


@pytest.mark.parametrize("weights", [(1, 1), (0.9, 0.1), (3, 1, 2)])
def test_sets_are_met_in_proportion_to_their_weights(weights):
    sets, first = [], 0
    for number in range(len(weights)):
        size = 5 + 20 * number
        sets.append({(): Members((size,), np.arange(first, first + size))})
        first += size
    plan = SamplePlan(sets, global_batch=50, seed=3, weights=weights)
    owner = {index: number for number, members in enumerate(sets) for index in members[()].indices.tolist()}
    steps = 10_000 // 50
    found = Counter(owner[index] for step in range(7 * steps, 8 * steps) for index in batch(plan, step))
    for number, weight in enumerate(weights):
        assert abs(found[number] - weight / sum(weights) * 10_000) <= 1
    # In the short run too no set waits long.
    few = Counter(owner[index] for step in range(4) for index in batch(plan, step))
    for number, weight in enumerate(weights):
        assert abs(few[number] / 200 - weight / sum(weights)) < 0.12


def test_inside_a_weighted_set_each_sample_comes_once_before_any_comes_twice():
    sets = [{(): Members((7,), np.arange(7))}, {(): Members((30,), np.arange(7, 37))}]
    plan = SamplePlan(sets, global_batch=10, seed=0, weights=(0.3, 0.7))
    seen = [index for step in range(2 * 10_000 // 10) for index in batch(plan, step)]
    counts = Counter(seen)
    assert {counts[i] for i in range(7)} <= {2 * 3000 // 7, 2 * 3000 // 7 + 1}
    assert {counts[i] for i in range(7, 37)} <= {2 * 7000 // 30, 2 * 7000 // 30 + 1}


@properties
@given(
    sets=data_sets(),
    seed=st.integers(0, 99),
    batch_size=st.integers(1, 7),
    step=st.integers(0, 10**6),
    attempt=st.integers(0, ATTEMPTS - 1),
)
def test_a_substitute_is_of_the_same_bucket_and_follows_from_the_bad_sample(sets, seed, batch_size, step, attempt):
    plan = SamplePlan(sets, global_batch=batch_size, seed=seed)
    buckets = bucket_of(sets)
    rule = {}
    for s in range(step, step + 20):
        for place in range(batch_size):
            bad, other = plan.locate(s, place), plan.instead(s, place, attempt)
            assert buckets[other] == buckets[bad]
            assert rule.setdefault(bad, other) == other


def test_substitutes_of_several_attempts_differ():
    plan = SamplePlan([{(): Members((50,), np.arange(50))}], global_batch=5, seed=0)
    assert len({plan.instead(0, 0, attempt) for attempt in range(ATTEMPTS)}) > ATTEMPTS // 2


def test_a_billion_samples_far_along_take_no_longer_than_the_first_step():
    class Endless:
        """Stands for an array that would take 8 GB."""

        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            return index

    plan = SamplePlan([{(): Members((10**9,), np.arange(2))}], global_batch=64, seed=0)
    plan._indices[0][0] = Endless()
    began = time.perf_counter()
    batch(plan, 10**12)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    ("weights", "drop_last", "message"),
    [((1,), False, "for 2 data sets"), ((1, 0), False, "above 0"), ((1, 2), True, "no common epoch")],
)
def test_weights_that_cannot_be_are_refused(weights, drop_last, message):
    sets = [{(): Members((4,), np.arange(4))}, {(): Members((4,), np.arange(4, 8))}]
    with pytest.raises(ValueError, match=message):
        SamplePlan(sets, global_batch=2, seed=0, weights=weights, drop_last=drop_last)


def test_a_bucket_that_dropping_would_never_use_is_refused():
    sets = [{(8, 8): Members((9,), np.arange(9)), (8, 12): Members((3,), np.arange(9, 12))}]
    with pytest.raises(ValueError, match=r"bucket \(8, 12\) has 3 samples, fewer than the global batch of 4"):
        SamplePlan(sets, global_batch=4, seed=0, drop_last=True)


def test_no_sample_at_all_is_refused():
    with pytest.raises(ValueError, match="no sample is left"):
        SamplePlan([{}], global_batch=4, seed=0)
