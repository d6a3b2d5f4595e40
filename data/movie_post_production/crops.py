"""The frame in a picture that fills a size, with the boxes inside it.

Pictures are scaled and cropped, never squashed; boxes go along. A box of which less than half is left is dropped: what
remains of the object would no longer be what its caption and its reference say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from stagecoach.data.movie_post_production.boxes import Box
from stagecoach.data.pictures import Size

MIN_VISIBLE = 0.5


@dataclass(frozen=True)
class FrameCrop:
    """The largest centred frame of the wanted aspect ratio: x1 y1 x2 y2 in fractions of the picture, and its size after
    scaling. A frame that is the whole picture squashes it (for latents that were made so)."""

    frame: Box
    size: Size

    @classmethod
    def of(cls, height: int, width: int, size: Size) -> FrameCrop:
        """The frame of a picture of ``height`` x ``width`` pixels."""
        ratio = (size[1] / size[0]) / (width / height)
        x, y = (1 - min(ratio, 1.0)) / 2, (1 - min(1 / ratio, 1.0)) / 2
        return cls((x, y, 1 - x, 1 - y), size)

    @classmethod
    def squash(cls, size: Size) -> FrameCrop:
        """The whole picture, at ``size``."""
        return cls((0.0, 0.0, 1.0, 1.0), size)

    def image(self, picture: Image.Image) -> np.ndarray:
        """RGB -> uint8 [H, W, 3], bicubic, smoothed where it shrinks."""
        left, top, right, bottom = (
            fraction * side for fraction, side in zip(self.frame, picture.size * 2, strict=True)
        )
        # Rounding may put a side a hair outside, which Pillow refuses.
        box = max(left, 0.0), max(top, 0.0), min(right, picture.width), min(bottom, picture.height)
        return np.asarray(picture.resize((self.size[1], self.size[0]), Image.Resampling.BICUBIC, box=box))

    def box(self, box: Box) -> Box | None:
        """The box in fractions of the frame, clipped; None where less than ``MIN_VISIBLE`` of its area is inside."""
        left, top, right, bottom = self.frame
        x1, x2 = ((min(max(x, left), right) - left) / (right - left) for x in box[::2])
        y1, y2 = ((min(max(y, top), bottom) - top) / (bottom - top) for y in box[1::2])
        visible = (x2 - x1) * (right - left) * (y2 - y1) * (bottom - top)
        if visible < MIN_VISIBLE * (box[2] - box[0]) * (box[3] - box[1]):
            return None
        return x1, y1, x2, y2

    def uncropped(self, box: Box) -> Box:
        """A box of the frame in fractions of the whole picture."""
        left, top, right, bottom = self.frame
        return (
            left + box[0] * (right - left),
            top + box[1] * (bottom - top),
            left + box[2] * (right - left),
            top + box[3] * (bottom - top),
        )


def cut(picture: Image.Image, box: Box, size: Size) -> np.ndarray:
    """The whole pixels of a box (fractions of the picture; rounded, at least one) as uint8 [H, W, 3] of ``size``, of
    any aspect ratio; bicubic, smoothed where it shrinks. Nothing outside the box shows in it."""
    x1, x2 = _pixels(box[0], box[2], picture.width)
    y1, y2 = _pixels(box[1], box[3], picture.height)
    return np.asarray(picture.crop((x1, y1, x2, y2)).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    first = min(round(low * size), size - 1)
    return first, max(round(high * size), first + 1)
