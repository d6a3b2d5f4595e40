"""Which tile of a latent is decoded for a box, and cutting and resizing as matrices, so that crops of different sizes
become one batch through which gradients flow.

The filter is Pillow's antialiased bicubic, which the cached reference crops were made with
(``data.movie_post_production.crops.cut``): cubic convolution with a = -0.5, stretched by the reduction, renormalised
where it meets the edge of the crop.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stagecoach.data.movie_post_production.schema import LATENT_STRIDE

_A = -0.5


def resize_weights(start: Tensor, length: Tensor, out: int, size: int, low: Tensor, high: Tensor) -> Tensor:
    """fp32 ``[..., out, size]``: how the ``size`` pixels of an axis make ``out`` new ones that show it from
    ``start`` on, ``length`` long. ``start``, ``length``, ``low``, ``high`` are ``[...]`` in pixels of the axis; nothing
    next to ``low .. high`` is looked at, what lies beyond repeats the edge. Each row sums to 1."""
    start, length, low, high = (x.double()[..., None, None] for x in (start, length, low, high))
    scale = length / out
    stretch = scale.clamp_min(1)
    pixels = torch.arange(size, dtype=torch.float64, device=start.device)
    steps = torch.arange(out, dtype=torch.float64, device=start.device)[:, None]
    centre = torch.minimum(torch.maximum(start + (steps + 0.5) * scale, low), high)
    weights = _cubic((pixels + 0.5 - centre) / stretch)
    inside = (pixels > low - 1) & (pixels < high)
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


@dataclass(frozen=True)
class Tiles:
    """``rows`` fp32 ``[B, K, S_h, h]`` and ``columns`` ``[B, K, S_w, w]`` cut the tiles out of the latent (see
    ``resample``). ``boxes`` fp32 ``[B, K, 4]``: x1 y1 x2 y2 of the box in pixels of the decoded tile."""

    rows: Tensor
    columns: Tensor
    boxes: Tensor


def pixel_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes ``[..., 4]`` in fractions of the picture -> whole pixels, fp32: rounded, at least one pixel wide and high,
    as ``data.movie_post_production.crops.cut`` does."""
    size = torch.tensor([width, height], dtype=torch.float64, device=boxes.device)
    low = torch.minimum((boxes[..., :2].double() * size).round(), size - 1)
    high = torch.maximum((boxes[..., 2:].double() * size).round(), low + 1)
    return torch.cat([low, high], -1).float()


def tiles(boxes: Tensor, height: int, width: int, side: int, margin: int) -> Tiles:
    """Tiles of ``side`` (or of the latent's ``height`` and ``width``, where these are less) around ``boxes``
    ``[B, K, 4]`` in fractions of the picture, with ``margin`` latents next to the box where the picture has them.

    The tile lies on whole latents, and the latent is taken as it is; only where box and margin need a larger one is
    it made smaller, equally along both axes.
    """
    pixels = pixel_boxes(boxes, LATENT_STRIDE * height, LATENT_STRIDE * width).double()
    size = torch.tensor([width, height], dtype=torch.float64, device=boxes.device)
    sides = (min(width, side), min(height, side))
    out = torch.tensor(sides, dtype=torch.float64, device=boxes.device)
    low, high = (pixels[..., :2] / LATENT_STRIDE).floor(), (pixels[..., 2:] / LATENT_STRIDE).ceil()
    needed = torch.minimum(high - low + 2 * margin, size)
    reduction = (needed / out).amax(-1, keepdim=True).clamp_min(1)
    extent = reduction * out
    # The epsilon undoes the rounding of a quotient that is a whole number.
    start = ((low + high - extent) / 2 + 1e-6).floor()
    start = torch.minimum(start.clamp_min(0), size - extent)
    zero = torch.zeros_like(start[..., 0])
    columns, rows = (
        resize_weights(start[..., axis], extent[..., axis], sides[axis], (width, height)[axis], zero, zero + size[axis])
        for axis in (0, 1)
    )
    inside = (pixels - LATENT_STRIDE * start.repeat(1, 1, 2)) / reduction
    return Tiles(rows, columns, inside.float())


def crop_weights(boxes: Tensor, height: int, width: int, out: int) -> tuple[Tensor, Tensor]:
    """Rows and columns (see ``resample``) that cut ``boxes`` ``[B, K, 4]`` in pixels out of a picture of
    ``height x width`` and fill a square of side ``out`` with each, at any aspect ratio."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (resize_weights(y1, y2 - y1, out, height, y1, y2), resize_weights(x1, x2 - x1, out, width, x1, x2))
