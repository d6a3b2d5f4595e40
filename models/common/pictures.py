"""Pictures for previews, uint8 ``[H, W, 3]``: titles, sizes, columns."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

TITLE = 16
"""Height of a title in pixels."""


def to_uint8(pixels: Tensor) -> np.ndarray:
    """``[..., 3, H, W]`` in about -1..1 -> uint8 ``[..., H, W, 3]``."""
    values = ((pixels.float() + 1) * 127.5).round().clamp(0, 255)
    return values.movedim(-3, -1).cpu().numpy().astype(np.uint8)


def titled(picture: np.ndarray, title: str) -> np.ndarray:
    """The picture under a line of text."""
    image = Image.new("RGB", (picture.shape[1], picture.shape[0] + TITLE), "white")
    image.paste(Image.fromarray(picture), (0, TITLE))
    ImageDraw.Draw(image).text((4, 2), title, fill="black")
    return np.asarray(image)


def resized(
    picture: np.ndarray, width: int | None = None, height: int | None = None, nearest: bool = False
) -> np.ndarray:
    """The picture at ``width`` x ``height``; where one is None, at its own aspect ratio. Bicubic, or ``nearest``."""
    if width is None:
        if height is None:
            raise ValueError("a picture is resized to no width and no height, expected at least one of them")
        width = max(round(picture.shape[1] * height / picture.shape[0]), 1)
    elif height is None:
        height = max(round(picture.shape[0] * width / picture.shape[1]), 1)
    kind = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((width, height), kind))


def side_by_side(keys: Sequence[str], **pixels: Tensor) -> dict[str, np.ndarray]:
    """For each key a row of pictures under their titles, from ``[B, 3, H, W]`` in about -1..1 by title."""
    rows = [
        [titled(picture, title.replace("_", " ")) for picture in to_uint8(values)] for title, values in pixels.items()
    ]
    return {key: np.concatenate(row, 1) for key, *row in zip(keys, *rows, strict=True)}


def column(pictures: Sequence[np.ndarray], right: bool = False) -> np.ndarray:
    """Pictures below each other, the narrower filled up with white on the right (``right``: aligned there instead)."""
    width = max(picture.shape[1] for picture in pictures)
    missing = [(width - picture.shape[1]) * np.array([right, not right]) for picture in pictures]
    return np.concatenate(
        [np.pad(p, ((0, 0), tuple(m), (0, 0)), constant_values=255) for p, m in zip(pictures, missing, strict=True)]
    )
