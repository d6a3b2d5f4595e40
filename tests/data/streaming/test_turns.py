"""Whose turn it is: in proportion, in order, and the same from wherever it is asked."""

import time
from fractions import Fraction
from math import ceil, log2

from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.data.streaming.turns import BLOCK, Turns

properties = settings(max_examples=60, deadline=None)
shares = st.lists(st.integers(1, 400), min_size=1, max_size=6)
epochs = st.fractions(Fraction(1, 5), 350, max_denominator=9)


@properties
@given(shares=shares, epoch=epochs, seed=st.integers(0, 99))
def test_turns_number_each_through_in_order_and_whole_rounds_give_each_its_share(shares, epoch, seed):
    turns, counts = Turns(shares, seed, "x", epoch), [0] * len(shares)
    for n in range(sum(shares)):
        which, k = turns.locate(n)
        assert k == counts[which]
        counts[which] += 1
    whole = Turns(shares, seed, "x", Fraction(sum(shares)))
    found = [whole.locate(n)[0] for n in range(sum(shares))]
    assert [found.count(which) for which in range(len(shares))] == shares


@properties
@given(shares=shares, epoch=epochs, number=st.integers(0, 10**9))
def test_when_an_epoch_ends_each_has_had_its_due_number_of_turns(shares, epoch, number):
    turns, end = Turns(shares, 0, "x", epoch), ceil(number * epoch)
    seen = {}
    for n in range(end, end + 6 * BLOCK):
        which, k = turns.locate(n)
        due = Fraction(end * shares[which], sum(shares))
        if which not in seen:
            assert abs(k - due) <= ceil(log2(len(shares))) / 2
        seen[which] = k


@properties
@given(shares=shares, epoch=epochs, asked=st.lists(st.integers(0, 2000), max_size=40))
def test_the_answer_does_not_depend_on_what_was_asked_before(shares, epoch, asked):
    turns = Turns(shares, 3, "x", epoch)
    for n in asked:
        assert turns.locate(n) == Turns(shares, 3, "x", epoch).locate(n)


def test_the_order_inside_a_block_is_shuffled_otherwise_in_each():
    turns = Turns([1, 1], 0, "x")
    blocks = {tuple(turns.locate(b * BLOCK + i)[0] for i in range(BLOCK)) for b in range(20)}
    assert len(blocks) == 20


def test_far_along_it_takes_no_longer():
    turns = Turns([10**9 + 7, 3, 10**8] * 20, 0, "x", Fraction(10**10, 7))
    began = time.perf_counter()
    for n in range(10**15, 10**15 + 10**8, 10**6):
        turns.locate(n)
    assert time.perf_counter() - began < 2
