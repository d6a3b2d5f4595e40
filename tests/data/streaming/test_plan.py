"""Which samples make up the global batches: buckets, epochs, weights, and what stands in for a bad sample."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stagecoach.data.streaming.plan import ATTEMPTS, Members, SamplePlan
from stagecoach.data.streaming.turns import BLOCK

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


def assert_once_each_before_any_twice(seen, size):
    """``seen`` so many times through ``size`` samples, each time all of them before the first one of the next time."""
    for first in range(0, len(seen), size):
        through = seen[first : first + size]
        assert len(set(through)) == len(through)


@properties
@given(
    sets=data_sets(),
    seed=st.integers(0, 99),
    batch_size=st.integers(1, 40),
    active_shards=st.integers(0, 3),
    world=st.integers(1, 4),
)
def test_whole_epochs_hold_each_sample_once(sets, seed, batch_size, active_shards, world):
    """Over three epochs, whatever buckets, batch and ranks: none is left out, none comes twice but for what fills the
    last batch of a bucket, and that does not come again in the next."""
    batch_size *= world
    plan = SamplePlan(sets, global_batch=batch_size, seed=seed, active_shards=active_shards)
    sizes, buckets = Counter(bucket_of(sets).values()), bucket_of(sets)
    seen, begin, local = Counter(), 0, batch_size // world
    for epoch in range(1, 4):
        batches = sum(-(-epoch * size // batch_size) for size in sizes.values())
        for step in range(begin, batches):
            for rank in range(world):
                seen.update(plan.locate(step, slot) for slot in range(rank * local, (rank + 1) * local))
        begin = batches
        assert sum(seen.values()) == batches * batch_size
        for bucket, size in sizes.items():
            counts = [seen[index] for index, of in buckets.items() if of == bucket]
            assert min(counts) >= epoch
            assert sum(counts) - epoch * size < batch_size, "more of the next epoch than fill a batch"
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("batch_size", [8, 64, 112])
def test_buckets_without_a_common_divisor_hold_each_sample_once_an_epoch(batch_size):
    """Once 4,091 of these 12,004 were never seen in an epoch, and one was seen six times."""
    sizes = (10_001, 2_003)
    sets = [{(1,): Members(sizes[:1], np.arange(10_001)), (2,): Members(sizes[1:], np.arange(10_001, 12_004))}]
    plan = SamplePlan(sets, global_batch=batch_size, seed=0)
    steps = sum(-(-size // batch_size) for size in sizes)
    seen = Counter(index for step in range(steps) for index in batch(plan, step))
    assert len(seen) == 12_004
    assert sum(count - 1 for count in seen.values()) == steps * batch_size - 12_004
    # Buckets come in proportion all along, and neither is left for the end.
    small = [plan.bucket(step) == (2,) for step in range(steps)]
    for stretch in range(0, steps - 2 * BLOCK, BLOCK):
        assert abs(sum(small[stretch : stretch + 2 * BLOCK]) / 2 / BLOCK - 2_003 / 12_004) < 0.15


@properties
@given(
    sets=data_sets(),
    seed=st.integers(0, 99),
    batch_size=st.integers(1, 9),
    active_shards=st.integers(0, 3),
    weights=st.none() | st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    steps=st.integers(1, 150),
)
def test_no_sample_comes_again_before_those_of_its_set_and_bucket_are_through(
    sets, seed, batch_size, active_shards, weights, steps
):
    given = None if weights is None else weights[: len(sets)]
    plan = SamplePlan(sets, global_batch=batch_size, seed=seed, weights=given, active_shards=active_shards)
    cell = {
        index: (number if weights else 0, bucket)
        for number, members in enumerate(sets)
        for bucket, part in members.items()
        for index in part.indices.tolist()
    }
    seen = {}
    for step in range(steps):
        for index in batch(plan, step):
            seen.setdefault(cell[index], []).append(index)
    members = Counter(cell.values())
    for which, drawn in seen.items():
        assert {cell[index] for index in drawn} == {which}
        assert_once_each_before_any_twice(drawn, members[which])


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


def test_buckets_of_a_weighted_set_stay_in_proportion_over_many_epochs():
    """A bucket of one sample in 2,000 keeps pace with the others: it comes neither more nor less often than they."""
    sets = [
        {(1,): Members((1,), np.arange(1)), (2,): Members((1999,), np.arange(1, 2000))},
        {(1,): Members((300,), np.arange(2000, 2300)), (3,): Members((7,), np.arange(2300, 2307))},
    ]
    plan = SamplePlan(sets, global_batch=4, seed=5, weights=(0.5, 0.5))
    seen = Counter(index for step in range(20_000) for index in batch(plan, step))
    assert abs(seen[0] - 20) <= 5
    assert {seen[index] for index in range(1, 2000)} <= {19, 20, 21}


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
