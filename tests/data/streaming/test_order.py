"""The global order is a bijection per epoch, well mixed, local where asked, and a function of its arguments alone."""

import math
from collections import Counter
from itertools import pairwise, permutations
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.data.streaming.order import Order, Permutation

sizes_of_shards = st.lists(st.integers(1, 12), min_size=1, max_size=20)
seeds = st.integers(-(2**70), 2**70)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 1000), key=st.text(max_size=8))
def test_permutation_is_a_bijection_of_any_size(size, key):
    permute = Permutation(size, key)
    assert sorted(map(permute, range(size))) == list(range(size))


def test_permutation_is_a_bijection_of_every_small_size():
    for size in range(1, 150):
        permute = Permutation(size, "small")
        assert sorted(map(permute, range(size))) == list(range(size))


@pytest.mark.parametrize("size", [10**9 + 7, 2**40, 2**61 - 1])
def test_large_sets_need_no_table(size):
    permute = Permutation(size, "large")
    places = [permute(x) for x in (*range(1000), *range(size - 1000, size))]
    assert len(set(places)) == 2000
    assert min(places) >= 0
    assert max(places) < size
    assert 0.45 < fmean(places) / size < 0.55


@settings(max_examples=80, deadline=None)
@given(sizes=sizes_of_shards, seed=seeds, active_shards=st.integers(0, 25), epoch=st.integers(0, 10**6))
def test_each_epoch_holds_each_sample_once(sizes, seed, active_shards, epoch):
    order = Order(sizes, seed, active_shards)
    found = [order.locate(epoch * len(order) + place) for place in range(len(order))]
    assert {e for e, _ in found} == {epoch}
    assert sorted(index for _, index in found) == list(range(sum(sizes)))


@settings(max_examples=40, deadline=None)
@given(sizes=sizes_of_shards, seed=seeds, active_shards=st.integers(0, 6), data=st.data())
def test_locate_depends_on_nothing_that_was_asked_before(sizes, seed, active_shards, data):
    used = Order(sizes, seed, active_shards)
    positions = data.draw(st.lists(st.integers(0, 5 * len(used)), min_size=1, max_size=30))
    assert [used.locate(p) for p in positions] == [Order(sizes, seed, active_shards).locate(p) for p in positions]


@settings(max_examples=50, deadline=None)
@given(sizes=sizes_of_shards, seed=seeds, active_shards=st.integers(1, 6))
def test_a_window_reads_from_its_few_shards_only(sizes, seed, active_shards):
    order = Order(sizes, seed, active_shards)
    shard_of = [number for number, size in enumerate(sizes) for _ in range(size)]
    visited = [shard_of[order.locate(p)[1]] for p in range(len(order))]
    left = set(range(len(sizes)))
    while visited:  # a active_shards ends where all samples of its shards were seen
        shards, count = set(), 0
        while not count or count < sum(sizes[s] for s in shards):
            shards.add(visited[count])
            count += 1
        assert len(shards) <= active_shards
        assert shards <= left
        left -= shards
        visited = visited[count:]


def rank_correlation(values: list[int]) -> float:
    """Spearman's rho of a permutation with the identity."""
    n = len(values)
    return 1 - 6 * sum((i - v) ** 2 for i, v in enumerate(values)) / (n * (n * n - 1))


@pytest.mark.parametrize("size", [97, 1000, 1024, 5000])
def test_order_mixes_as_a_random_permutation_does(size):
    """Of a random permutation, rho has the variance 1 / (n - 1), the mean displacement is (n^2 - 1) / (3 n) with a
    variance of about 2 n / 45, neighbours are as far apart as any two, and one fixed point is expected."""
    order = Order([size], seed=3)
    for epoch in range(4):
        values = [order.locate(epoch * size + i)[1] for i in range(size)]
        assert abs(rank_correlation(values)) < 4 / math.sqrt(size - 1)
        displacement = fmean(abs(i - v) for i, v in enumerate(values))
        assert abs(displacement - (size * size - 1) / (3 * size)) < 4 * math.sqrt(2 * size / 45)
        gap = fmean(abs(a - b) for a, b in pairwise(values))
        assert abs(gap - (size + 1) / 3) < 4 * size / math.sqrt(18 * size) * math.sqrt(2)
        assert sum(i == v for i, v in enumerate(values)) < 10


def test_epochs_and_seeds_are_unrelated():
    size = 2000
    first = [Order([size], 0).locate(i)[1] for i in range(size)]
    next_epoch = [Order([size], 0).locate(size + i)[1] for i in range(size)]
    other_seed = [Order([size], 1).locate(i)[1] for i in range(size)]
    for other in (next_epoch, other_seed):
        place = {v: i for i, v in enumerate(first)}
        assert abs(rank_correlation([place[v] for v in other])) < 4 / math.sqrt(size - 1)


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_all_orders_of_a_handful_are_equally_frequent(size):
    """Windows can be small, and few Feistel rounds favour some orders there."""
    expected = 20
    draws = expected * math.factorial(size)
    order = Order([size], seed=11)
    counts = Counter(tuple(order.locate(epoch * size + i)[1] for i in range(size)) for epoch in range(draws))
    chi_squared = sum((counts[p] - expected) ** 2 / expected for p in permutations(range(size)))
    freedom = math.factorial(size) - 1
    assert chi_squared < freedom + 4 * math.sqrt(2 * freedom)


def test_order_of_a_seed_never_changes():
    """A run that resumes under a later version must go on in the order in which it began."""
    positions = (0, 1, 2, 11, 12, 10**12)
    assert [Order([5, 3, 4], 42).locate(p) for p in positions] == [
        (0, 11),
        (0, 8),
        (0, 6),
        (0, 2),
        (1, 10),
        (83333333333, 7),
    ]
    assert [Order([5, 3, 4], 42, active_shards=2).locate(p) for p in positions] == [
        (0, 10),
        (0, 8),
        (0, 7),
        (0, 1),
        (1, 4),
        (83333333333, 8),
    ]


@pytest.mark.parametrize("arguments", [([], 0, 0), ([3, 0], 0, 0), ([3], 0, -1)])
def test_impossible_orders_are_refused(arguments):
    with pytest.raises(ValueError, match="expected"):
        Order(*arguments)


def test_negative_position_is_refused():
    with pytest.raises(ValueError, match="position is -1"):
        Order([3], 0).locate(-1)
