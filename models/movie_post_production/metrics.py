"""What is monitored, by the guide's names: masked sums with their counts, so that means over ranks are means over
references."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stagecoach.models.movie_post_production.identity.loss import FOREGROUND

Metrics = dict[str, tuple[Tensor, Tensor]]
BINS = 5
"""Equal parts of [0, 1] that a distribution is reported in."""


def over(values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum and count (fp32 scalars) of ``values``, of those where ``mask`` if given."""
    values = values.detach().float()
    if mask is None:
        return values.sum(), torch.ones_like(values).sum()
    return torch.where(mask, values, 0.0).sum(), mask.sum().float()


def distribution(name: str, values: Tensor, mask: Tensor) -> Metrics:
    """The part of ``values`` in each fifth of [0, 1], as ``name/0.0-0.2`` and so on."""
    place = (values.detach().float() * BINS).floor().clamp(0, BINS - 1)
    return {f"{name}/{b / BINS:.1f}-{(b + 1) / BINS:.1f}": over((place == b).float(), mask) for b in range(BINS)}


@torch.no_grad()
def reference_metrics(prediction: Mapping[str, Tensor], valid: Tensor) -> Metrics:
    """``alpha_mean`` and ``alpha_fg_ratio`` (alpha >= 0.5) over valid references, the distribution of alpha."""
    alpha = prediction["alpha"]
    return {
        "alpha_mean": over(alpha, valid),
        "alpha_fg_ratio": over((alpha >= FOREGROUND).float(), valid),
        **distribution("alpha_distribution", alpha, valid),
    }
