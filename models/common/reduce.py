"""Means inside a sample for losses, and sums with counts for metrics.

What a mask excludes has no influence, NaN included. Ranks add sums and counts before they divide, so that a mean over
ranks is a mean over what was measured.
"""

import torch
from torch import Tensor

Measured = tuple[Tensor, Tensor]
"""Sum and count, fp32."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` ``[B, ...]`` where ``mask`` (same shape), inside each sample: fp32 ``[B]``, 0 where a mask is
    empty."""
    total = torch.where(mask, values.float(), 0.0).flatten(1).sum(1)
    return total / mask.flatten(1).sum(1).clamp_min(1)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of ``values`` ``[B, ...]`` by ``weight`` (same shape) inside each sample: ``[B]``, 0 where all weights are
    0."""
    total = weight.flatten(1).sum(1)
    summed = (torch.where(weight > 0, values, 0.0) * weight).flatten(1).sum(1)
    return summed / torch.where(total > 0, total, 1.0)


def sum_count(values: Tensor, mask: Tensor | None = None) -> Measured:
    """Sum and count of all ``values``, of those where ``mask`` (same shape) if given: fp32 scalars."""
    values = values.detach().float()
    if mask is None:
        return values.sum(), torch.ones_like(values).sum()
    return torch.where(mask, values, 0.0).sum(), mask.sum().float()


def sum_count_per_sample(values: Tensor, mask: Tensor | None = None) -> Measured:
    """The same inside each sample of ``values`` ``[B, ...]``: fp32 ``[B]`` each."""
    values = values.detach().float()
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    chosen = torch.where(mask, values, 0.0)
    return chosen.reshape(len(values), -1).sum(1), mask.reshape(len(values), -1).float().sum(1)


def total(measured: Measured) -> Measured:
    """Sums and counts per sample ``[B]`` over the samples: fp32 scalars."""
    return measured[0].detach().float().sum(), measured[1].detach().float().sum()
