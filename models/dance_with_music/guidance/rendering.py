"""Skeletons and face masks, drawn on the device from what a sample stores of them."""

import colorsys
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stagecoach.data.dance_with_music.skeleton import BODY_LIMBS, CONFIDENT, FACE, HAND_LIMBS, LEFT_HAND, RIGHT_HAND
from stagecoach.models.common.constants import constant

LIMBS = (*BODY_LIMBS, *((s.start + a, s.start + b) for s in (LEFT_HAND, RIGHT_HAND) for a, b in HAND_LIMBS))
COLOURS = tuple(colorsys.hsv_to_rgb(number / len(LIMBS), 1, 1) for number in range(len(LIMBS)))
PICTURE_CHUNK, GRADIENT_CHUNK = 1 << 22, 1 << 20
"""Pixels that are drawn at once, without gradients and with: 60 limbs keep some bytes each."""


def render_skeletons(xy: Tensor, conf: Tensor, height: int, width: int) -> Tensor:
    """fp32 ``[B, T, 3, H, W]`` in [0, 1] on black: what ``data.dance_with_music.skeleton.draw_skeleton`` draws, with
    soft edges, so that gradients reach ``xy``.

    ``xy`` ``[B, T, 134, 2]``, divided by width and height; ``conf`` ``[B, T, 134]`` in 0..1, points below ``CONFIDENT``
    are left out. A limb covers a pixel by how far its centre lies inside, 0 to 1 over one pixel, and later limbs cover
    earlier ones; a point of the face covers the four pixels around it by their nearness. Frames are drawn a few at a
    time; where there are gradients a few are drawn again in the backward.
    """
    points = xy.float().flatten(0, 1) * constant((width, height), xy.device)
    sure = conf.flatten(0, 1) >= CONFIDENT
    draw, chunk = partial(_draw, height=height, width=width), PICTURE_CHUNK
    if torch.is_grad_enabled() and points.requires_grad:
        draw, chunk = partial(checkpoint, draw, use_reentrant=False, preserve_rng_state=False), GRADIENT_CHUNK
    count = max(chunk // (height * width), 1)
    pictures = [draw(p, s) for p, s in zip(points.split(count), sure.split(count), strict=True)]
    return torch.cat(pictures).unflatten(0, xy.shape[:2])


def _draw(points: Tensor, sure: Tensor, height: int, width: int) -> Tensor:
    """``[N, 134, 2]`` in pixels and ``[N, 134]`` -> ``[N, 3, H, W]``."""
    rows = (torch.arange(height, device=points.device, dtype=torch.float32) + 0.5).unsqueeze(-1)
    columns = torch.arange(width, device=points.device, dtype=torch.float32) + 0.5
    line = max(round(min(height, width) / 96), 1)
    picture = points.new_zeros(len(points), 3, height, width)
    inks = constant(COLOURS, points.device).view(-1, 3, 1, 1)
    for number, ((a, b), ink) in enumerate(zip(LIMBS, inks, strict=True)):
        thick = line if number < len(BODY_LIMBS) else 1
        cover = _capsule(points[:, a], points[:, b], rows, columns, thick / 2) * _there(sure[:, a] & sure[:, b])
        picture = torch.lerp(picture, ink, cover.unsqueeze(1))
    near_x = (1 - (columns - points[:, FACE, :1]).abs()).clamp(min=0)
    near_y = (1 - (rows.squeeze(-1) - points[:, FACE, 1:]).abs()).clamp(min=0) * sure[:, FACE, None]
    dots = torch.einsum("nky,nkx->nyx", near_y, near_x).clamp(max=1)
    return torch.lerp(picture, torch.ones((), device=points.device), dots.unsqueeze(1))


def _capsule(start: Tensor, end: Tensor, rows: Tensor, columns: Tensor, radius: float) -> Tensor:
    """How far all within ``radius`` of the segments ``[N, 2]`` covers each pixel, ``[N, H, W]``."""
    (x0, y0), (x1, y1) = ([v.view(-1, 1, 1) for v in p.unbind(-1)] for p in (start, end))
    dx, dy = x1 - x0, y1 - y0
    along = ((columns - x0) * dx + (rows - y0) * dy) / (dx.square() + dy.square()).clamp(min=1e-6)
    along = along.clamp(0, 1)
    square = (columns - x0 - along * dx).square() + (rows - y0 - along * dy).square()
    return (radius + 0.5 - square.clamp(min=1e-12).sqrt()).clamp(0, 1)


def _there(sure: Tensor) -> Tensor:
    return sure.view(-1, 1, 1).float()


def face_masks(boxes: Tensor, valid: Tensor, height: int, width: int) -> Tensor:
    """fp32 ``[B, T, h, w]``: 1 at the latent pixels whose centre lies inside the box, 0 elsewhere and where there is no
    face. ``boxes`` ``[B, T, 4]`` are x0 y0 x1 y1 divided by width and height, ``valid`` ``[B, T]``."""
    x0, y0, x1, y1 = boxes.float().unsqueeze(-1).unbind(-2)
    columns = (torch.arange(width, device=boxes.device, dtype=torch.float32) + 0.5) / width
    rows = (torch.arange(height, device=boxes.device, dtype=torch.float32) + 0.5) / height
    across, down = (columns >= x0) & (columns < x1), (rows >= y0) & (rows < y1)
    return (down.unsqueeze(-1) & across.unsqueeze(-2) & valid.bool()[..., None, None]).float()
