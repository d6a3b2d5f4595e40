"""Skeletons as DWPose draws them, on tensors with gradients and on pictures.

The drawing is that of DWPose's and StableAnimator's code: 17 limbs as ellipses in 0.6 of their colours, 18 joints as
discs, hands as lines in the colours of the rainbow with blue discs, the face as white discs, no feet; what comes later
covers what came before. Sizes are in pixels of the canvas that is drawn on.
"""

import colorsys
import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stagecoach.data.dance_with_music.skeleton import (
    BODY,
    BODY_LIMBS,
    CONFIDENT,
    FACE,
    HAND_LIMBS,
    LEFT_HAND,
    RIGHT_HAND,
)

LIMB, JOINT, EDGE, DOT = 4.6, 4.0, 1.6, 3.0
"""Half widths of what OpenCV fills: ellipses of half width 4, discs of radius 4 and 3, lines of thickness 2."""
DARKER = 0.6
PICTURE, CANVAS = 512, 2160
AT_ONCE = 1 << 22
"""Pixels of the frames that are drawn together."""

Shape = tuple[int, int, float, bool, tuple[float, float, float]]
"""Two points, half width, whether it is an ellipse, colour."""


@dataclass(frozen=True)
class Pen:
    """``unit``: side of a pixel of the canvas in pixels of the picture; ``edge``: over how many of these an edge is
    soft; ``fade``: colours are multiplied by confidences, and hands and face are drawn however unsure they are."""

    unit: float
    edge: float
    fade: bool


def dwpose_pen(height: int, width: int) -> Pen:
    """DWPose's own, which CHAMP's pictures were drawn with: the canvas is the picture; one below 512 pixels is drawn as
    one of 512 and shrunk."""
    return Pen(min(min(height, width) / PICTURE, 1.0), 1.0, False)


def stable_animator_pen(height: int, width: int) -> Pen:
    """StableAnimator's: a canvas whose short side is 2160, of which every so many pixels one is taken; below 512
    pixels the canvas is smaller, so that lines stay as thick."""
    unit = max(min(height, width), PICTURE) / CANVAS
    return Pen(unit, unit, True)


def render_skeletons(xy: Tensor, conf: Tensor, height: int, width: int, pen: Pen, onto: Tensor | None = None) -> Tensor:
    """fp32 ``[B, T, 3, H, W]`` in [0, 1], on black or ``onto`` pictures of that shape.

    ``xy`` ``[B, T, 134, 2]``, divided by width and height; ``conf`` ``[B, T, 134]`` in 0..1. What is below
    ``CONFIDENT`` is left out. Each shape is looked at inside its box alone. It covers a pixel by how far its centre
    lies inside, so that gradients reach ``xy``, and with ``pen.fade`` ``conf``.
    """
    if xy.is_meta:
        return xy.sum() * xy.new_zeros(*xy.shape[:2], 3, height, width, dtype=torch.float32)
    points = xy.float().flatten(0, 1) * xy.new_tensor([width, height], dtype=torch.float32)
    sure = conf.float().flatten(0, 1)
    black = points.new_zeros(len(points), height, width, 3)
    under = black if onto is None else onto.flatten(0, 1).permute(0, 2, 3, 1) + black
    count = max(AT_ONCE // (height * width), 1)
    parts = [_draw(*part, pen) for part in zip(points.split(count), sure.split(count), under.split(count), strict=True)]
    return torch.cat(parts).permute(0, 3, 1, 2).unflatten(0, xy.shape[:2])


def draw_skeleton(image: np.ndarray, xy: np.ndarray, conf: np.ndarray) -> np.ndarray:
    """A copy of uint8 [H, W, 3] with the points [134, 2] (divided by width and height) and confidences [134] drawn into
    it with ``dwpose_pen``."""
    height, width = image.shape[:2]
    under = torch.from_numpy(image.copy()).permute(2, 0, 1)[None, None].float() / 255
    given = (torch.as_tensor(np.asarray(part, np.float32))[None, None] for part in (xy, conf))
    drawn = render_skeletons(*given, height, width, dwpose_pen(height, width), under)
    return (drawn[0, 0] * 255).round().byte().permute(1, 2, 0).numpy()


def _shapes() -> list[Shape]:
    def hue(part: float) -> tuple[float, float, float]:
        return colorsys.hsv_to_rgb(part, 1, 1)

    joints = range(BODY.start, BODY.stop)
    shapes: list[Shape] = [
        (a, b, LIMB, True, tuple(DARKER * part for part in hue(k / len(joints))))  # type: ignore[misc]
        for k, (a, b) in enumerate(BODY_LIMBS)
    ]
    shapes += [(k, k, JOINT, False, hue(k / len(joints))) for k in joints]
    for hand in (LEFT_HAND, RIGHT_HAND):
        shapes += [
            (hand.start + a, hand.start + b, EDGE, False, hue(k / len(HAND_LIMBS)))
            for k, (a, b) in enumerate(HAND_LIMBS)
        ]
        shapes += [(k, k, JOINT, False, (0.0, 0.0, 1.0)) for k in range(hand.start, hand.stop)]
    return shapes + [(k, k, DOT, False, (1.0, 1.0, 1.0)) for k in range(FACE.start, FACE.stop)]


@functools.cache
def _tables(device: torch.device) -> tuple[Tensor, ...]:
    """First and second points, half widths, which are ellipses, colours, and which belong to hands and face."""
    first, second, half, ellipse, ink = zip(*_shapes(), strict=True)
    with torch.inference_mode(False):
        a, b, r, e, c = (torch.tensor(part, device=device) for part in (first, second, half, ellipse, ink))
        return a, b, r, e, c, a >= BODY.stop


def _draw(points: Tensor, sure: Tensor, under: Tensor, pen: Pen) -> Tensor:
    """``[N, 134, 2]`` in pixels, ``[N, 134]`` and ``[N, H, W, 3]`` -> ``[N, H, W, 3]``."""
    (count, height, width, _), (a, b, half, ellipse, ink, small) = under.shape, _tables(points.device)
    start, end, one, other = points[:, a], points[:, b], sure[:, a], sure[:, b]
    strength = torch.where(a == b, one, one * other) if pen.fade else torch.ones_like(one)
    both = torch.minimum(one, other)
    there = torch.where(small, both > 0, both >= CONFIDENT) if pen.fade else both >= CONFIDENT
    # DWPose leaves out points of hands and face in the first row and column, where it has those that it did not find.
    there = there & (~small | ((start >= pen.unit).all(-1) & (end >= pen.unit).all(-1)))
    half = half * pen.unit

    with torch.no_grad():
        owner, x, y = _boxes(start, end, half + pen.edge / 2, there, height, width)
        place = (owner // len(half)) * (height * width) + y * width + x
        cover = _cover(start, end, half, ellipse, owner, x, y, pen)
        owner, x, y, place, ranks = _visible(cover, owner, x, y, place)
    cover = _cover(start, end, half, ellipse, owner, x, y, pen)
    colour = ink[owner % len(half)] * strength.flatten()[owner, None]
    picture = under.reshape(-1, 3).clone()
    done = 0
    for number in ranks:
        some = slice(done, done + number)
        picture[place[some]] = torch.lerp(picture[place[some]], colour[some], cover[some, None])
        done += number
    return picture.view(count, height, width, 3)


def _boxes(
    start: Tensor, end: Tensor, margin: Tensor, there: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Every pixel of the box around each of the ``[N, P]`` shapes that are ``there``: number of the shape in ``N P``,
    column and row."""
    last = start.new_tensor([width - 1, height - 1])
    low = (torch.minimum(start, end) - margin[:, None] - 0.5).ceil().clamp(min=0)
    high = torch.minimum((torch.maximum(start, end) + margin[:, None] - 0.5).floor(), last)
    sides = ((high - low + 1).clamp(min=0) * there[..., None]).long().flatten(0, 1)
    counts = sides.prod(-1)
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
    across, corner = sides[owner, 0], low.long().flatten(0, 1)[owner]
    return owner, corner[:, 0] + place % across, corner[:, 1] + place // across


def _visible(cover: Tensor, owner: Tensor, x: Tensor, y: Tensor, place: Tensor) -> tuple[Tensor, ...]:
    """Of pairs of a shape and a pixel those that are seen, in rounds in which each pixel comes once, from the lowest
    shape on: ``owner``, ``x``, ``y``, ``place`` and, on the host, the number of pairs of each round."""
    kept = cover.nonzero().squeeze(1)
    kept = kept[place[kept].sort(stable=True).indices]
    number, first = _places(place[kept])
    # Nothing is seen of what lies below a shape that covers its pixel.
    group = first.cumsum(0) - 1
    whole = torch.zeros_like(number).scatter_reduce(0, group, torch.where(cover[kept] >= 1, number, 0), "amax")
    kept = kept[number >= whole[group]]
    number, first = _places(place[kept])
    rounds = (number - torch.where(first, number, 0).cummax(0).values).sort(stable=True)
    kept = kept[rounds.indices]
    return owner[kept], x[kept], y[kept], place[kept], rounds.values.bincount().tolist()


def _places(pixel: Tensor) -> tuple[Tensor, Tensor]:
    """Of sorted pixels their numbers, and where another one begins."""
    first = torch.ones_like(pixel, dtype=torch.bool)
    first[1:] = pixel[1:] != pixel[:-1]
    return torch.arange(len(pixel), device=pixel.device), first


def _cover(
    start: Tensor, end: Tensor, half: Tensor, ellipse: Tensor, owner: Tensor, x: Tensor, y: Tensor, pen: Pen
) -> Tensor:
    """How far each shape covers its pixel, 0 to 1 over the width of an edge."""
    shape = owner % len(half)
    from_, to, radius = start.flatten(0, 1)[owner], end.flatten(0, 1)[owner], half[shape]
    along, at = to - from_, torch.stack([x, y], -1) + 0.5 - from_
    length = along.square().sum(-1).clamp(min=1e-6).sqrt()
    forward = (at * along).sum(-1) / length
    nearest = along * (forward / length).clamp(0, 1)[:, None]
    line = radius - (at - nearest).square().sum(-1).clamp(min=1e-12).sqrt()
    # The distance to an ellipse to first order: f (1 - f) / |grad f| where f is 1 on it.
    longer = torch.maximum(length / 2, 0.5 * pen.unit * torch.ones_like(length))
    aside = (at[:, 0] * along[:, 1] - at[:, 1] * along[:, 0]) / length
    u, v = (forward - length / 2) / longer, aside / radius
    f = (u.square() + v.square()).clamp(min=1e-12).sqrt()
    slope = ((u / longer).square() + (v / radius).square()).clamp(min=1e-12).sqrt()
    inside = torch.where(ellipse[shape], f * (1 - f) / slope, line)
    return (inside / pen.edge + 0.5).clamp(0, 1)
