"""Pictures for previews, uint8 ``[H, W, 3]``, of tensors: what ``data.pictures`` draws, with tensors."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from stagecoach.data.pictures import TITLE, column, resized, titled

__all__ = ["TITLE", "column", "resized", "side_by_side", "titled", "to_uint8"]


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
