"""Cutting and resizing as matrices, so that crops of different sizes become one batch through which gradients flow.

The filter is Pillow's antialiased bicubic, which the cached reference crops were made with
(``data.movie_post_production.crops.cut``): cubic convolution with a = -0.5, stretched by the reduction, renormalised
where it meets the edge of the crop.
"""

from __future__ import annotations

import torch
from torch import Tensor

_A = -0.5


def resize_weights(start: Tensor, length: Tensor, out: int, size: int, low: Tensor, high: Tensor) -> Tensor:
    """fp32 ``[..., out, size]``: how the ``size`` places of an axis make ``out`` new ones that show its part from
    ``start`` on, ``length`` long. ``start``, ``length``, ``low``, ``high`` are ``[...]`` in places of the axis; nothing
    beside ``low .. high`` is looked at, what lies beyond repeats the edge. Each row sums to 1."""
    start, length, low, high = (x.double()[..., None, None] for x in (start, length, low, high))
    scale = length / out
    stretch = scale.clamp_min(1)
    places = torch.arange(size, dtype=torch.float64, device=start.device)
    steps = torch.arange(out, dtype=torch.float64, device=start.device)[:, None]
    centre = torch.minimum(torch.maximum(start + (steps + 0.5) * scale, low), high)
    weights = _cubic((places + 0.5 - centre) / stretch)
    inside = (places > low - 1) & (places < high)
    weights = torch.where(inside, weights, 0.0)
    return (weights / weights.sum(-1, keepdim=True)).float()


def resample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``x`` ``[B, C, h, w]`` through ``rows`` ``[B, K, H, h]`` and ``columns`` ``[B, K, W, w]`` ->
    ``[B, K, C, H, W]``."""
    return torch.einsum("bkHh,bchw,bkWw->bkcHW", rows.to(x.dtype), x, columns.to(x.dtype))


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel."""
    x = x.abs()
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
