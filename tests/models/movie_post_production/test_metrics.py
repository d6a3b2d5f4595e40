"""What is measured."""

import pytest
import torch

from stagecoach.models.common.reduce import sum_count
from stagecoach.models.movie_post_production.losses import distribution


def test_metrics_are_sums_and_counts_over_what_is_valid():
    """D9: padding of any value has no influence."""
    values, mask = torch.tensor([[0.1, 0.9, torch.nan]]), torch.tensor([[True, True, False]])
    assert [x.item() for x in sum_count(values, mask)] == [pytest.approx(1.0), 2]
    parts = distribution("alpha_distribution", values, mask)
    assert list(parts) == [
        f"alpha_distribution/{a}-{b}"
        for a, b in (("0.0", "0.2"), ("0.2", "0.4"), ("0.4", "0.6"), ("0.6", "0.8"), ("0.8", "1.0"))
    ]
    assert [x.item() for x, _ in parts.values()] == [1, 0, 0, 0, 1]
