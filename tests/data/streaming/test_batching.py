"""How a global batch is cut into micro-batches."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.data.streaming.stream import Batching


@given(local=st.integers(1, 300), micro_batch=st.integers(1, 300), world_size=st.integers(1, 64))
def test_micro_batches_are_equal_and_as_few_as_the_bound_allows(local, micro_batch, world_size):
    batching = Batching(local * world_size, micro_batch, world_size)
    assert batching.local == local
    assert batching.accumulation * batching.micro == local
    assert batching.micro <= micro_batch
    fewer = range(1, batching.accumulation)
    assert not any(local % a == 0 and local // a <= micro_batch for a in fewer)


@pytest.mark.parametrize(
    ("global_batch", "world_size", "advice"), [(112, 64, "use 64 or 128"), (10, 4, "use 8 or 12"), (3, 4, "use 4$")]
)
def test_world_size_that_does_not_divide_the_global_batch_is_refused_with_the_nearest(global_batch, world_size, advice):
    with pytest.raises(ValueError, match=f"global_batch is {global_batch}.*{world_size}; {advice}"):
        Batching(global_batch, 1, world_size)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (4, 0, 1), (4, 1, 0)])
def test_batching_of_nothing_is_refused(numbers):
    with pytest.raises(ValueError, match="at least 1"):
        Batching(*numbers)


def test_batching_cannot_be_changed_after_it_was_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Batching(4, 1, 1).world_size = 3
