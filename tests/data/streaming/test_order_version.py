"""The order of samples is part of what a checkpoint stands for: another one needs another version."""

import hashlib

import numpy as np
import pytest

from stagecoach.data.streaming.plan import TURNS_ORDER, Members, SamplePlan

BATCH = 8


def cut(sizes, first=0):
    """A data set: of each bucket so many samples, in two shards."""
    members = {}
    for number, size in enumerate(sizes):
        members[(number,)] = Members((size // 3, size - size // 3), np.arange(first, first + size))
        first += size
    return members


PLANS = {
    "one set": SamplePlan([cut([301])], global_batch=BATCH, seed=3),
    "active shards": SamplePlan([cut([301])], global_batch=BATCH, seed=3, active_shards=1),
    "dropped tails": SamplePlan([cut([301])], global_batch=BATCH, seed=3, drop_last=True),
    "joined sets": SamplePlan([cut([301]), cut([90], 301)], global_batch=BATCH, seed=3),
    "buckets": SamplePlan([cut([301, 77, 20])], global_batch=BATCH, seed=3),
    "buckets without tails": SamplePlan([cut([301, 77, 20])], global_batch=BATCH, seed=3, drop_last=True),
    "weights": SamplePlan([cut([301]), cut([90], 301)], global_batch=BATCH, seed=3, weights=(0.3, 0.7)),
    "weights and buckets": SamplePlan([cut([301, 20]), cut([90], 321)], global_batch=BATCH, seed=3, weights=(0.3, 0.7)),
}
HASHES = {
    ("one set", 1): "7cae84cff5010e90",
    ("active shards", 1): "79d3e36cc1b01b54",
    ("dropped tails", 1): "0d76abe9f82b4ab1",
    ("joined sets", 1): "958dd066e98d8287",
    ("buckets", 2): "556f2796932e80c3",
    ("buckets without tails", 2): "7e6037c052a2f8ee",
    ("weights", 2): "2586044ade2d7786",
    ("weights and buckets", 2): "5fe521640487ea3c",
}


def drawn(name: str) -> str:
    """Of 200 steps and of 50 far along."""
    plan = PLANS[name]
    steps = [*range(200), *range(10**7, 10**7 + 50)]
    text = ",".join(str(plan.locate(step, slot)) for step in steps for slot in range(BATCH))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", PLANS)
def test_the_order_of_a_version_stays_what_it_is(name):
    """Where this fails, raise ``TURNS_ORDER`` and take the new hashes: runs begun before must not go on unnoticed. The
    order of one set without buckets has no version; it must not change."""
    assert drawn(name) == HASHES[name, PLANS[name].order_version]


@pytest.mark.parametrize("name", PLANS)
def test_the_order_has_a_version_only_where_turns_are_taken(name):
    turns = "buckets" in name or "weights" in name
    assert PLANS[name].order_version == (TURNS_ORDER if turns else 1)
