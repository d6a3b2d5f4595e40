"""A contact sheet: rows of a clip's frames under their titles."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from stagecoach.data.files import atomic_file
from stagecoach.data.pictures import column, resized, titled

COLUMNS = 6
WIDTH = 240
"""Pixels of a frame."""


def spread(frames: int, columns: int = COLUMNS) -> list[int]:
    """At most ``columns`` frame numbers from the first to the last, evenly spaced."""
    return sorted({round(x) for x in np.linspace(0, frames - 1, min(columns, frames))})


def contact_sheet(rows: Mapping[str, np.ndarray], columns: int = COLUMNS, width: int = WIDTH) -> np.ndarray:
    """A row for each title, uint8 [F, H, W, 3] -> picture uint8 [h, w, 3]: at most ``columns`` frames, spread over the
    clip, each ``width`` wide under the title and its number."""
    lines = []
    for title, frames in rows.items():
        shown = [titled(resized(frames[k], width=width), f"{title}, frame {k}") for k in spread(len(frames), columns)]
        lines.append(np.concatenate(shown, 1))
    return column(lines)


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write uint8 [H, W, 3] as PNG."""
    with atomic_file(path) as file:
        Image.fromarray(picture).save(file, format="PNG")
