"""Means inside a sample, and sums with counts."""

import pytest
import torch

from stagecoach.models.common.reduce import masked_mean, sum_count, sum_count_per_sample, total, weighted_mean

VALUES = torch.tensor([[1.0, 3.0, torch.nan], [torch.nan] * 3])
MASK = torch.tensor([[True, True, False], [False] * 3])


def test_what_is_masked_has_no_influence_and_an_empty_sample_is_zero():
    assert masked_mean(VALUES, MASK).tolist() == [2, 0]
    assert weighted_mean(VALUES, torch.tensor([[1.0, 3.0, 0.0], [0.0] * 3])).tolist() == [2.5, 0]
    assert [x.tolist() for x in sum_count_per_sample(VALUES, MASK)] == [[4, 0], [2, 0]]
    assert [x.item() for x in sum_count(VALUES, MASK)] == [4, 2]


def test_a_masked_value_gets_no_gradient():
    values = torch.tensor([[1.0, 2.0, 4.0]], requires_grad=True)
    masked_mean(values, torch.tensor([[True, True, False]])).sum().backward()
    assert values.grad.tolist() == [[0.5, 0.5, 0]]


def test_sums_over_samples_are_detached_scalars():
    values = torch.arange(6.0, requires_grad=True).view(2, 3)
    for found in (sum_count(values), total(sum_count_per_sample(values))):
        assert [x.item() for x in found] == pytest.approx([15, 6])
        assert not found[0].requires_grad
