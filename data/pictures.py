"""Colours for numbers, and sheets of pictures."""

from __future__ import annotations

import numpy as np

INVALID = (96, 96, 96)

# Polynomial fit of Google's Turbo colour map (R. Du, A. Mikhailov, 2019; Apache-2.0): rows are red, green, blue,
# columns the powers 0 to 5.
_TURBO = np.array(
    [
        [0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943],
        [0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604],
        [0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973],
    ]
)


def turbo(x: np.ndarray) -> np.ndarray:
    """Colours uint8 [..., 3] of numbers in [0, 1] (clipped): dark blue, green, yellow, dark red."""
    powers = np.clip(np.nan_to_num(x), 0, 1)[..., None] ** np.arange(6)
    return (np.clip(powers @ _TURBO.T, 0, 1) * 255).round().astype(np.uint8)


def depth_colours(depth: np.ndarray) -> np.ndarray:
    """Depth [..., H, W] (0 is invalid, grey) -> uint8 [..., H, W, 3]: near is red; by 1 / depth, one range
    for all."""
    depth = depth.astype(np.float32)
    valid = depth > 0
    if not valid.any():
        return np.broadcast_to(np.array(INVALID, np.uint8), (*depth.shape, 3)).copy()
    low, high = np.percentile(1 / depth[valid], (2, 98))
    colours = turbo((1 / np.where(valid, depth, 1) - low) / max(high - low, 1e-6))
    colours[~valid] = INVALID
    return colours


def sheet(pictures: list[np.ndarray], columns: int) -> np.ndarray:
    """Pictures uint8 [h, w, 3], each in the upper left of its cell, on white."""
    height, width = (max(p.shape[i] for p in pictures) for i in (0, 1))
    rows = -(-len(pictures) // columns)
    out = np.full((rows, height, columns, width, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        out[row, : picture.shape[0], column, : picture.shape[1]] = picture
    return out.reshape(rows * height, columns * width, 3)
