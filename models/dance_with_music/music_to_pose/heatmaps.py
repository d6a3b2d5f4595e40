"""Where a point is, as a distribution over a heatmap's pixels, and back.

Pixel ``i`` of ``R`` is centred at ``(i + 0.5) / R`` of the picture's width (columns, x) or height (rows, y). A heatmap
is indexed ``[..., y, x]``. Everything here is in fp32.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def marginals(logits: Tensor, tau: float) -> Tensor:
    """softmax(logits / tau) over the last axis."""
    return (logits.float() / tau).softmax(dim=-1)


def heatmap(output: Mapping[str, Tensor], tau: float) -> Tensor:
    """``[B, T, 134, R, R]``, each point's pixels sum to 1. ``output`` is MusicToPose's: ``logits_x`` and ``logits_y``,
    whose outer product the heatmap is, or ``logits``."""
    if "logits" in output:
        logits = output["logits"]
        return marginals(logits.flatten(-2), tau).unflatten(-1, logits.shape[-2:])
    return outer(marginals(output["logits_x"], tau), marginals(output["logits_y"], tau))


def axis_marginals(output: Mapping[str, Tensor], tau: float) -> tuple[Tensor, Tensor]:
    """Distributions over columns and over rows, ``[B, T, 134, R]`` each."""
    if "logits" in output:
        whole = heatmap(output, tau)
        return whole.sum(-2), whole.sum(-1)
    return marginals(output["logits_x"], tau), marginals(output["logits_y"], tau)


def outer(x: Tensor, y: Tensor) -> Tensor:
    """Of distributions over columns ``x`` and rows ``y``, ``[..., R]`` each: ``[..., R, R]``."""
    return y.unsqueeze(-1) * x.unsqueeze(-2)


def coordinates(output: Mapping[str, Tensor], tau: float) -> Tensor:
    """Soft-argmax ``[B, T, 134, 2]``: the mean pixel centre, x and y divided by width and height."""
    return torch.stack([mean_position(p) for p in axis_marginals(output, tau)], dim=-1)


def mean_position(probability: Tensor) -> Tensor:
    """``[..., R]`` -> ``[...]`` in [0, 1]."""
    return probability @ centres(probability.shape[-1], probability.device)


def centres(resolution: int, device: torch.device | str) -> Tensor:
    """Pixel centres, ``[R]`` in [0, 1]."""
    return (torch.arange(resolution, device=device, dtype=torch.float32) + 0.5) / resolution


def gaussian_marginals(xy: Tensor, resolution: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Gaussians of ``sigma`` pixels around ``xy`` ``[..., 2]``, over columns and over rows, ``[..., R]`` each,
    normalised to 1 over the pixels. A point outside of the picture piles up at its edge."""
    distance = (xy.float().unsqueeze(-1) - centres(resolution, xy.device)) * resolution
    x, y = (-distance.square() / (2 * sigma * sigma)).softmax(dim=-1).unbind(-2)
    return x, y


def render_heatmaps(xy: Tensor, conf: Tensor, resolution: int, sigma: float) -> Tensor:
    """``[B, T, 134, R, R]`` of points ``[B, T, 134, 2]`` and confidences ``[B, T, 134]``: each map sums to its
    confidence."""
    x, y = gaussian_marginals(xy, resolution, sigma)
    return outer(x * conf.float().unsqueeze(-1), y)
