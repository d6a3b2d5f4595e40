"""Boxes as people write them become corners in fractions of the picture; whether those of a data set are what they are
said to be."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

from stagecoach.data.building.jobs import RawError

BoxFormat = Literal["xyxy", "xywh"]
BoxUnits = Literal["fraction", "pixel", "1000"]
Box = tuple[float, float, float, float]

OUTSIDE = 0.05
"""How far a box may stick out of the picture, in fractions of its side; it is clipped. Farther, and its unit is
another."""
ENOUGH = 8
"""Boxes from which on another convention is looked for where some are none: by chance one fits all but few of them
with a probability of 1 / 4 each (see below)."""
TELLING = 4
"""Boxes that tell corners from width and height: corners pass for the other kind only where the box's centre lies in
the upper left quarter of the picture, which four of four do once in 256 times."""
NEAR, FAR = 0.6, 0.9
"""Boxes that reach no farther than ``NEAR`` of their pictures are suspect where by another unit they reach ``FAR``."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoxConvention:
    """``format``: corners x1 y1 x2 y2, or x y width height. ``units``: of the picture's side, pixels, or thousandths of
    the side."""

    format: BoxFormat = "xyxy"
    units: BoxUnits = "fraction"

    def __str__(self) -> str:
        return f"--box-format {self.format} --box-units {self.units}"

    def corners(self, numbers: Sequence[float], size: tuple[int, int] | None) -> Box:
        """x1 y1 x2 y2 in fractions of the picture, not clipped. ``size``: its width and height, for pixels."""
        x1, y1, x2, y2 = map(float, numbers)
        if self.format == "xywh":
            x2, y2 = x1 + x2, y1 + y2
        width, height = (size or (math.nan, math.nan)) if self.units == "pixel" else (self._side, self._side)
        return x1 / width, y1 / height, x2 / width, y2 / height

    def problem(self, numbers: Sequence[float], size: tuple[int, int] | None) -> str:
        """Why the numbers are no box; empty where they are one."""
        corners = self.corners(numbers, size)
        x1, y1, x2, y2 = (min(max(v, 0.0), 1.0) for v in corners)
        if not (min(corners) >= -OUTSIDE and max(corners) <= 1 + OUTSIDE):  # also without a size
            return "a box beyond the picture"
        if x1 >= x2 or y1 >= y2:
            return "an empty box"
        return "a box inside one pixel" if self.units != "fraction" and max(numbers) <= 1 else ""

    @property
    def _side(self) -> float:
        return 1.0 if self.units == "fraction" else 1000.0


CORNERS = BoxConvention()
CONVENTIONS = tuple(BoxConvention(*both) for both in product(get_args(BoxFormat), get_args(BoxUnits)))


def read_box(
    value: Any, where: str, convention: BoxConvention | None = None, size: tuple[int, int] | None = None
) -> Box:
    """A box in [0, 1]: what sticks out a little is clipped. ``convention``: None where no option can say another one
    than corners in fractions. ``size``: width and height of the picture. Raises ``RawError`` for anything that is no
    box, naming the conventions by which it is one."""
    if not is_numbers(value):
        raise RawError(f"{where}: 'bbox' is {value!r:.80}, expected four finite numbers x1 y1 x2 y2")
    used = convention or CORNERS
    if problem := used.problem(value, size):
        expected, fitting = _expected(used), [str(other) for other in CONVENTIONS if not other.problem(value, size)]
        if convention is None:
            hint = "; divide pixels by width and height, and give corners, not width and height"
        else:
            hint = f"; it is one by {' or '.join(fitting)}" if fitting else ""
        raise RawError(f"{where}: 'bbox' is {value}, {problem}, expected {expected}{hint}")
    x1, y1, x2, y2 = (min(max(v, 0.0), 1.0) for v in used.corners(value, size))
    return x1, y1, x2, y2


def is_numbers(value: Any) -> bool:
    """Whether it is a list of four finite numbers."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    )


def _expected(convention: BoxConvention) -> str:
    units = {"fraction": "in 0..1", "pixel": "in pixels of the picture", "1000": "in 0..1000"}
    corners = {"xyxy": "x1 < x2 and y1 < y2", "xywh": "x y width height"}
    return f"{corners[convention.format]} {units[convention.units]}"


class BoxSurvey:
    """Counts by which conventions the boxes of a data set are some. ``asked``: whether a person gave the format."""

    def __init__(self, asked: bool) -> None:
        self._asked = asked
        self._boxes = self._misfits = 0
        self._fits: Counter[BoxConvention] = Counter()
        self._reach: dict[BoxConvention, float] = dict.fromkeys(CONVENTIONS, 0.0)
        self._given = BoxConvention()

    def add(self, value: Any, given: BoxConvention, size: tuple[int, int] | None) -> None:
        """Count a box that is read as ``given``; anything but numbers is none."""
        if not is_numbers(value):
            return
        self._boxes, self._given = self._boxes + 1, given
        self._misfits += bool(given.problem(value, size))
        for convention in CONVENTIONS:
            if not convention.problem(value, size):
                self._fits[convention] += 1
                self._reach[convention] = max(self._reach[convention], *convention.corners(value, size)[2:])

    def check(self, where: object) -> None:
        """Raises ``RawError`` where boxes are none as they are read, and nearly all are some by another convention; a
        warning where they do not tell."""
        boxes, given, reach = self._boxes, self._given, self._reach
        best = max(self._fits.values(), default=0)
        if boxes >= ENOUGH and self._misfits and 4 * (boxes - best) <= self._misfits:
            likely = " or ".join(str(c) for c in CONVENTIONS if self._fits[c] == best)
            raise RawError(
                f"{where}: {self._misfits} of {boxes} boxes are none by {given}, expected next to all; {best} are some "
                f"by {likely}: give that"
            )
        for other in CONVENTIONS:
            if self._fits[other] < boxes or boxes < TELLING or self._misfits:
                continue
            if other.units == given.units and other.format != given.format and not self._asked:
                _log.warning(
                    "%s: all %d boxes, read by %s, are boxes by %s, too; look at some (preview), and give --box-format",
                    where,
                    boxes,
                    given,
                    other,
                )
            if other.format == given.format and reach[given] <= NEAR and reach[other] >= FAR:
                _log.warning(
                    "%s: none of %d boxes reaches beyond %.2f of its picture by %s, and by %s they reach %.2f; "
                    "look at some (preview)",
                    where,
                    boxes,
                    reach[given],
                    given,
                    other,
                    reach[other],
                )
