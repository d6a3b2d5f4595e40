"""Pictures from noise: Euler steps over FLUX's sigmas."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from stagecoach.models.common.flow_matching import shift_sigma
from stagecoach.models.movie_post_production.losses import resolution_shift


def sigmas(steps: int, tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """fp32 ``[steps + 1]`` from 1 to 0: 1, ..., 1 / steps, moved by the resolution's shift, then 0; those of diffusers'
    ``FluxPipeline``."""
    u = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64)
    moved = shift_sigma(u, resolution_shift(tokens))
    return torch.cat([moved, moved.new_zeros(1)]).float().to(device)


@torch.no_grad()
def euler(velocity: Callable[[Tensor, Tensor, int], Tensor], noise: Tensor, levels: Tensor) -> Tensor:
    """Integrate dx / dt = v from ``noise`` ``[B, C, h, w]`` down ``levels``; fp32. ``velocity(x, t, k)`` is asked at
    each but the last, ``t`` fp32 ``[B]``, ``k`` the number of the step."""
    x = noise.float()
    for k, (now, then) in enumerate(itertools.pairwise(levels)):
        x = x + (then - now) * velocity(x, now.expand(len(x)), k).float()
    return x
