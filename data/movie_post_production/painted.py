"""What was painted, for people: the picture with the boxes of its objects, and each object's reference above it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from stagecoach.data.movie_post_production.boxes import Box
from stagecoach.data.movie_post_production.crops import cut
from stagecoach.data.movie_post_production.schema import FOREGROUND
from stagecoach.data.pictures import column, resized, titled

CROP = 96
"""Side of an object's picture."""
MOST_CROPS = 8
RED, BLUE = (220, 30, 30), (40, 80, 230)
BLANK = 96
"""Grey, of an object without a reference."""


def draw_boxes(
    picture: np.ndarray, boxes: Sequence[Sequence[float]], alpha: Sequence[float], height: int | None = None
) -> np.ndarray:
    """uint8 ``[H, W, 3]`` -> the same (at ``height``) with boxes x1 y1 x2 y2 in fractions of it: red for alpha >= 0.5,
    else blue."""
    image = Image.fromarray(picture if height is None else resized(picture, height=height))
    (width, height), pen = image.size, ImageDraw.Draw(image)
    for (x1, y1, x2, y2), weight in zip(boxes, alpha, strict=True):
        colour = RED if weight >= FOREGROUND else BLUE
        at = int(x1 * width), int(y1 * height), int(x2 * width), int(y2 * height)
        pen.rectangle((at[0], at[1], max(at[2] - 1, at[0]), max(at[3] - 1, at[1])), outline=colour, width=2)
        pen.text((at[0] + 4, at[1] + 3), f"alpha={weight:.2f}", fill="white", stroke_width=2, stroke_fill=colour)
    return np.asarray(image)


def cut_object(picture: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """What is in the box, uint8 ``[96, 96, 3]``."""
    x1, y1, x2, y2 = box
    return cut(Image.fromarray(picture), (x1, y1, x2, y2), (CROP, CROP))


def crop_rows(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of objects below each other."""
    return np.concatenate([np.concatenate(row, 1) for row in rows if row] or [np.zeros((0, CROP, 3), np.uint8)])


def reference_sheet(
    picture: np.ndarray, boxes: Sequence[Box], references: Sequence[np.ndarray | None], columns: int = MOST_CROPS
) -> np.ndarray:
    """Of each object the reference (uint8 ``[h, w, 3]``, any size; grey where there is none) above what was painted in
    its box of ``picture`` uint8 ``[H, W, 3]``, ``columns`` next to each other under titles."""
    blank = np.full((CROP, CROP, 3), BLANK, np.uint8)
    given = [blank if r is None else resized(r, CROP, CROP) for r in references]
    painted = [cut_object(picture, box) for box in boxes]
    lines = []
    for start in range(0, len(painted), columns):
        for title, row in (("reference", given), ("painted", painted)):
            lines.append(titled(np.concatenate(row[start : start + columns], 1), title))
    return column(lines or [np.zeros((0, CROP, 3), np.uint8)])
