"""Where a sample's pictures lie in those of the source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Crop:
    """The largest centred window of the wanted aspect ratio, in source pixels (the source spans [0, w] x [0, h])."""

    box: tuple[float, float, float, float]
    source: tuple[int, int]
    height: int
    width: int

    @classmethod
    def of(cls, source_height: int, source_width: int, height: int, width: int) -> Crop:
        scale = max(height / source_height, width / source_width)
        left, top = max(source_width - width / scale, 0) / 2, max(source_height - height / scale, 0) / 2
        box = (left, top, min(left + width / scale, source_width), min(top + height / scale, source_height))
        return cls(box, (source_height, source_width), height, width)

    def image(self, image: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] -> [H, W, 3], bicubic, smoothed where it shrinks."""
        if image.shape[:2] == (self.height, self.width):
            return image
        resized = Image.fromarray(image).resize((self.width, self.height), Image.Resampling.BICUBIC, box=self.box)
        return np.asarray(resized)

    def points(self, xy: np.ndarray) -> np.ndarray:
        """[..., 2] divided by the source's width and height -> divided by the crop's."""
        left, top, right, bottom = self.box
        return (xy * self.source[::-1] - [left, top]) / [right - left, bottom - top]
