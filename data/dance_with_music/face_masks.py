"""Faces from masks, one picture per source frame, as StableAnimator's data sets have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.crop import Crop
from stagecoach.data.dance_with_music.footage import PICTURES, numbered_files, read_picture

MASK = 127
"""Masks are 255 inside."""


def mask_boxes(folder: Path, chosen: np.ndarray, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """The boxes that the masks of source frames ``chosen`` span in the crop, float32 [F, 4] (x0 y0 x1 y1 divided by its
    width and height, 0 where there is none), and whether there is one, bool [F].

    A mask that covers nothing or everything says that no face was found (StableAnimator's writer fills it where its
    detector found none). Raises ``RawError``.
    """
    files = numbered_files(folder, PICTURES)
    names = [files[number] for number in sorted(files)]
    if len(names) <= chosen.max():
        raise RawError(
            f"{folder}: {len(names)} face masks found, expected one for each frame, {chosen.max() + 1} or more"
        )
    boxes = {int(k): _mask_box(read_picture(names[int(k)])[..., 0] > MASK) for k in np.unique(chosen)}
    found = np.stack([boxes[int(k)] for k in chosen])
    valid = (found[:, 2:] > found[:, :2]).all(1)
    moved = crop.points(found.reshape(-1, 2, 2)).reshape(-1, 4).clip(0, 1)
    valid &= (moved[:, 2:] > moved[:, :2]).all(1)
    return (moved * valid[:, None]).astype(np.float32), valid


def _mask_box(mask: np.ndarray) -> np.ndarray:
    """x0 y0 x1 y1 divided by width and height, 0 where there is no face."""
    if not mask.any() or mask.all():
        return np.zeros(4)
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / np.tile(mask.shape[::-1], 2)
