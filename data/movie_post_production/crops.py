"""Sizes that pictures are brought to, and the window of a picture that fills one, with the boxes inside it.

Pictures are scaled and cropped, never squashed; boxes go along. A box of which less than half is left is dropped: what
remains of the object would no longer be what its caption and its reference say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stagecoach.data.building.jobs import RawError
from stagecoach.data.movie_post_production.captions import Box
from stagecoach.data.movie_post_production.schema import PATCH_STRIDE

ASPECTS = (1.0, 4 / 3, 3 / 2, 16 / 9, 21 / 9)
"""Width to height of the sizes for an area; each also upright."""
MAX_ENLARGED = 2.0
"""A picture that would have to grow by more has no detail for the size that was asked for."""
MIN_VISIBLE = 0.5

Size = tuple[int, int]
"""Height and width in pixels."""


def parse_sizes(words: Sequence[str]) -> list[Size]:
    """Sizes of "HxW" (one size) or "R" (the nine shapes of about R x R pixels). Raises ``ValueError``."""
    sizes = []
    for word in words:
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", word)
        if match is None:
            raise ValueError(f"size {word!r} found, expected HEIGHTxWIDTH or one number R for shapes of R x R pixels")
        sizes += [(int(match[1]), int(match[2]))] if match[2] else shapes_of_area(int(match[1]))
    for size in sizes:
        if any(side < PATCH_STRIDE or side % PATCH_STRIDE for side in size):
            nearest = "x".join(str(max(round(side / PATCH_STRIDE), 1) * PATCH_STRIDE) for side in size)
            raise ValueError(
                f"size {size[0]}x{size[1]} found, expected multiples of {PATCH_STRIDE} (VAE stride 8, "
                f"patch 2); take {nearest}"
            )
    return list(dict.fromkeys(sizes))


def shapes_of_area(side: int) -> list[Size]:
    """Height and width of about ``side * side`` pixels for each of ``ASPECTS``, in multiples of a token."""
    shapes = []
    for aspect in ASPECTS:
        long, short = (
            max(round(side * factor / PATCH_STRIDE), 1) * PATCH_STRIDE for factor in (aspect**0.5, aspect**-0.5)
        )
        shapes += [(short, long), (long, short)]
    return list(dict.fromkeys(shapes))


def choose_size(height: int, width: int, sizes: Sequence[Size], where: str) -> Size:
    """The size that keeps most of a picture; among equals the largest that does not enlarge it, else the smallest.

    Raises ``RawError`` naming ``where`` for a picture that is too small for all that keep as much.
    """
    kept = {size: _kept(height, width, size) for size in sizes}
    best = [size for size in sizes if kept[size] > max(kept.values()) - 1e-6]
    best.sort(key=lambda size: size[0] * size[1])
    fitting = [size for size in best if _enlarged(height, width, size) <= 1]
    size = fitting[-1] if fitting else best[0]
    if _enlarged(height, width, size) > MAX_ENLARGED:
        raise RawError(
            f"{where}: {height} x {width} pixels found, expected at least 1/{MAX_ENLARGED:g} of {size[0]} x "
            f"{size[1]}, the size for its shape; give smaller --sizes or larger pictures"
        )
    return size


def _enlarged(height: int, width: int, size: Size) -> float:
    return max(size[0] / height, size[1] / width)


def _kept(height: int, width: int, size: Size) -> float:
    """Part of the picture's area inside the crop."""
    ratio = (size[1] / size[0]) / (width / height)
    return min(ratio, 1 / ratio)


@dataclass(frozen=True)
class CoverCrop:
    """The largest centred window of the wanted aspect ratio: x1 y1 x2 y2 as parts of the picture, and its size after
    scaling. A window that is the whole picture squashes it (for latents that were made so)."""

    window: Box
    size: Size

    @classmethod
    def of(cls, height: int, width: int, size: Size) -> CoverCrop:
        ratio = (size[1] / size[0]) / (width / height)
        x, y = (1 - min(ratio, 1.0)) / 2, (1 - min(1 / ratio, 1.0)) / 2
        return cls((x, y, 1 - x, 1 - y), size)

    @classmethod
    def squash(cls, size: Size) -> CoverCrop:
        return cls((0.0, 0.0, 1.0, 1.0), size)

    def image(self, picture: Image.Image) -> np.ndarray:
        """RGB -> uint8 [H, W, 3], bicubic, smoothed where it shrinks."""
        left, top, right, bottom = (part * side for part, side in zip(self.window, picture.size * 2, strict=True))
        # Rounding may put a side a hair outside, which Pillow refuses.
        box = max(left, 0.0), max(top, 0.0), min(right, picture.width), min(bottom, picture.height)
        return np.asarray(picture.resize((self.size[1], self.size[0]), Image.Resampling.BICUBIC, box=box))

    def box(self, box: Box) -> Box | None:
        """The box in parts of the window, clipped; None where less than ``MIN_VISIBLE`` of its area is inside."""
        left, top, right, bottom = self.window
        x1, x2 = ((min(max(x, left), right) - left) / (right - left) for x in box[::2])
        y1, y2 = ((min(max(y, top), bottom) - top) / (bottom - top) for y in box[1::2])
        visible = (x2 - x1) * (right - left) * (y2 - y1) * (bottom - top)
        if visible < MIN_VISIBLE * (box[2] - box[0]) * (box[3] - box[1]):
            return None
        return x1, y1, x2, y2

    def uncropped(self, box: Box) -> Box:
        """A box of the window in parts of the whole picture."""
        left, top, right, bottom = self.window
        return (
            left + box[0] * (right - left),
            top + box[1] * (bottom - top),
            left + box[2] * (right - left),
            top + box[3] * (bottom - top),
        )


def cut(picture: Image.Image, box: Box, size: Size) -> np.ndarray:
    """The whole pixels of a box (parts of the picture; rounded, at least one) as uint8 [H, W, 3] of ``size``, whatever
    its aspect ratio; bicubic, smoothed where it shrinks. Nothing beside the box shows in it."""
    x1, x2 = _pixels(box[0], box[2], picture.width)
    y1, y2 = _pixels(box[1], box[3], picture.height)
    return np.asarray(picture.crop((x1, y1, x2, y2)).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    first = min(round(low * size), size - 1)
    return first, max(round(high * size), first + 1)
