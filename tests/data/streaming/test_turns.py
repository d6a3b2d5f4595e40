"""Whose turn it is: in proportion, in order, and the same from wherever it is asked."""

import pickle
import time
from fractions import Fraction
from math import ceil, log2

from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.data.streaming.turns import BLOCK, KEPT, Turns

properties = settings(max_examples=60, deadline=None)
shares = st.lists(st.integers(1, 400), min_size=1, max_size=6)
several = st.lists(st.integers(1, 400), min_size=2, max_size=6)
divisors = st.integers(1, 50)


@properties
@given(shares=several, per_epoch=divisors, seed=st.integers(0, 99), epochs=st.integers(1, 4))
def test_turns_are_counted_through_in_order_and_fill_whole_epochs(shares, per_epoch, seed, epochs):
    turns, came, begin = Turns(shares, seed, "x", per_epoch), [0] * len(shares), 0
    for epoch in range(1, epochs + 1):
        due = [-(-epoch * share // per_epoch) for share in shares]
        for n in range(begin, sum(due)):
            which, k = turns.locate(n)
            assert k == came[which]
            came[which] += 1
        begin = sum(due)
        assert came == due


@properties
@given(shares=shares, seed=st.integers(0, 99))
def test_turns_without_epochs_are_counted_through_and_keep_to_the_shares(shares, seed):
    turns, came = Turns(shares, seed, "x"), [0] * len(shares)
    for n in range(sum(shares) + BLOCK):
        if n % BLOCK == 0:
            for which, share in enumerate(shares):
                assert abs(came[which] - Fraction(n * share, sum(shares))) <= ceil(log2(len(shares))) / 2
        which, k = turns.locate(n)
        assert k == came[which]
        came[which] += 1


@properties
@given(shares=several, per_epoch=divisors | st.none(), number=st.integers(0, 10**9))
def test_far_along_turns_go_on_in_order_and_in_proportion(shares, per_epoch, number):
    turns = Turns(shares, 0, "x", per_epoch)
    first = number * BLOCK
    found = [turns.locate(n) for n in range(first, first + 6 * BLOCK)]
    for which, share in enumerate(shares):
        numbers = [k for w, k in found if w == which]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        if numbers:
            # Epochs of whole turns have up to one of each more than the shares give.
            assert abs(numbers[0] - Fraction(first * share, sum(shares))) <= BLOCK + len(shares)


@properties
@given(shares=shares, per_epoch=divisors | st.none(), asked=st.lists(st.integers(0, 2000), max_size=40))
def test_the_answer_does_not_depend_on_what_was_asked_before(shares, per_epoch, asked):
    turns = Turns(shares, 3, "x", per_epoch)
    for n in asked:
        assert turns.locate(n) == Turns(shares, 3, "x", per_epoch).locate(n)
        assert pickle.loads(pickle.dumps(turns)).locate(n) == turns.locate(n)


def test_the_order_inside_a_block_is_shuffled_otherwise_in_each():
    for per_epoch in (None, 1):
        turns = Turns([10 * BLOCK, 10 * BLOCK], 0, "x", per_epoch)
        blocks = {tuple(turns.locate(b * BLOCK + i)[0] for i in range(BLOCK)) for b in range(40)}
        assert len(blocks) == 40


def test_far_along_it_takes_no_longer():
    turns = Turns([10**9 + 7, 3, 10**8] * 20, 0, "x", 896)
    began = time.perf_counter()
    for n in range(10**15, 10**15 + 10**8, 10**6):
        turns.locate(n)
    assert time.perf_counter() - began < 2
    assert len(turns._blocks) <= KEPT
