"""Samples become a batch: dtypes, padding, fields that some lack."""

import numpy as np
import pytest
import torch

from stagecoach.data.format.schema import Field, SampleSchema, SchemaError
from stagecoach.data.streaming.dataset import Sample
from stagecoach.data.streaming.stream import collate


def test_bf16_bits_keep_their_meaning():
    numbers = torch.tensor([1.0, -2.5, float("inf"), 3.140625], dtype=torch.bfloat16)
    array = numbers.view(torch.int16).numpy().view(np.uint16)
    schema = SampleSchema("x", 1, (Field("a", "bf16", (4,)),))
    assert torch.equal(collate(schema, [Sample("k", "s", {"a": array}, {})])["a"], numbers[None])


@pytest.mark.parametrize(
    ("pad", "shapes", "expected"),
    [(1, [(2, 1, 3), (2, 4, 3)], (2, 2, 4, 3)), (2, [(2, 1, 3), (2, 1, 1)], (2, 2, 1, 3))],
)
def test_any_one_dimension_can_be_padded(pad, shapes, expected):
    schema = SampleSchema("x", 1, (Field("a", "f32", ("A", "B", "C"), pad=pad),))
    batch = collate(schema, [Sample("k", "s", {"a": np.ones(shape, np.float32)}, {}) for shape in shapes])
    assert batch["a"].shape == expected
    assert batch["a"].sum() == sum(map(np.prod, shapes))


def test_samples_of_two_sizes_in_a_batch_are_named(schema, make_arrays):
    samples = [Sample(key, f"{key}.tar", dict(make_arrays(0)), {}) for key in ("one", "two")]
    samples[1].arrays["depth"] = np.zeros((5, 8, 6), np.float16)
    with pytest.raises(SchemaError, match=r"'depth' has shape \[5, 8, 6\] in two\.tar: .* \[5, 4, 6\] in one\.tar"):
        collate(schema, samples)


def test_a_field_that_only_some_samples_have_is_an_error_and_one_that_none_has_is_not(schema, make_arrays):
    samples = [Sample(key, f"{key}.tar", dict(make_arrays(0)), {}) for key in ("one", "two")]
    del samples[1].arrays["frame"]
    with pytest.raises(SchemaError, match=r"'frame' is in one\.tar: sample 'one' but not in two\.tar: sample 'two'"):
        collate(schema, samples)
    del samples[0].arrays["frame"]
    assert "frame" not in collate(schema, samples)
