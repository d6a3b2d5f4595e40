"""Pictures for previews, uint8 ``[H, W, 3]``, of tensors: what ``data.pictures`` draws, with tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from stagecoach.data.pictures import TITLE, CoverCrop, column, resized, titled, to_rgb

__all__ = ["TITLE", "column", "fitted", "read_pixels", "resized", "side_by_side", "titled", "to_uint8"]
RANGE = 1e-3
"""How far numbers of a picture may lie outside of 0..1, of rounding."""


def read_pixels(image: Any) -> np.ndarray:
    """uint8 ``[h, w, 3]`` of a picture that a user gives: PIL's, an array of that kind or in 0..1, a tensor
    ``[3, h, w]``. Raises ``ValueError``."""
    if isinstance(image, PIL.Image.Image):
        return np.asarray(to_rgb(image, "the picture that was given"))
    if isinstance(image, Tensor):
        image = image.movedim(0, -1).cpu()
        image = (image if image.dtype == torch.uint8 else image.float()).numpy()
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(
            f"a picture of shape {list(pixels.shape)} was given, expected [H, W, 3], a tensor [3, H, W] or PIL's"
        )
    if pixels.dtype == np.uint8:
        return pixels
    if not (pixels.min() >= -RANGE and pixels.max() <= 1 + RANGE):
        raise ValueError(
            f"a picture of {pixels.dtype} from {pixels.min():g} to {pixels.max():g} was given, expected uint8 or 0..1"
        )
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def fitted(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of a picture at this size, as training has it."""
    h, w = pixels.shape[:2]
    return pixels if (h, w) == (height, width) else CoverCrop.of(h, w, height, width).image(pixels)


def to_uint8(pixels: Tensor) -> np.ndarray:
    """``[..., 3, H, W]`` in about -1..1 -> uint8 ``[..., H, W, 3]``."""
    values = ((pixels.float() + 1) * 127.5).round().clamp(0, 255)
    return values.movedim(-3, -1).cpu().numpy().astype(np.uint8)


def side_by_side(keys: Sequence[str], **pixels: Tensor) -> dict[str, np.ndarray]:
    """For each key a row of pictures under their titles, from ``[B, 3, H, W]`` in about -1..1 by title."""
    rows = [
        [titled(picture, title.replace("_", " ")) for picture in to_uint8(values)] for title, values in pixels.items()
    ]
    return {key: np.concatenate(row, 1) for key, *row in zip(keys, *rows, strict=True)}
