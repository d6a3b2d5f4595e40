"""Depth of a clip against the true one."""

from typing import Literal

import torch
from torch import Tensor

from stagecoach.models.metrics.metric import Metric, Unavailable

Alignment = Literal["raw", "median", "affine"]
METRICS = tuple(
    Metric(f"depth_{name}{end}", unit, higher)
    for end in ("", "_median", "_affine")
    for name, unit, higher in (
        ("abs_rel", "of the depth", False),
        ("delta1", "0..1", True),
        ("rmse", "scene units", False),
    )
)


def depth_errors(depth: Tensor, truth: Tensor, valid: Tensor, alignment: Alignment = "raw") -> dict[str, float]:
    """Over the ``valid`` pixels of ``depth`` and ``truth`` ``[F, H, W]``: ``depth_abs_rel``, mean |d - g| / g;
    ``depth_delta1``, the part where max(d / g, g / d) < 1.25; ``depth_rmse``. Names end in ``_median`` or ``_affine``
    where ``depth`` is first scaled by the ratio of the medians, or scaled and shifted by least squares, once for the
    clip. Raises ``Unavailable`` where no pixel is valid."""
    valid = valid.bool() & (truth > 0)
    if not valid.any():
        raise Unavailable("no pixel of the clip has a true depth")
    d, g = depth[valid].double(), truth[valid].double()
    if alignment == "median":
        d = d * (g.median() / d.median())
    elif alignment == "affine":
        d = _affine(d, g)
    ratio = torch.where(d > 0, torch.maximum(d / g, g / d.clamp_min(1e-12)), torch.inf)
    end = "" if alignment == "raw" else f"_{alignment}"
    return {
        f"depth_abs_rel{end}": ((d - g).abs() / g).mean().item(),
        f"depth_delta1{end}": (ratio < 1.25).double().mean().item(),
        f"depth_rmse{end}": (d - g).square().mean().sqrt().item(),
    }


def _affine(d: Tensor, g: Tensor) -> Tensor:
    """``d`` scaled and shifted nearest to ``g``; the mean of ``g`` where all of ``d`` is one."""
    spread = (d - d.mean()).square().sum()
    scale = ((d - d.mean()) * (g - g.mean())).sum() / spread if spread > 0 else spread
    return scale * (d - d.mean()) + g.mean()
