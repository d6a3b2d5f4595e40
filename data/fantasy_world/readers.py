"""Readers of a raw clip's video and of text files of cameras.

Each raises ``RawError`` with one sentence that names the file, what was found and what was expected.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import read_text
from stagecoach.data.video_frames import read_video

COLUMNS = ("idx", "fx", "fy", "cx", "cy", "k1", "k2", *(f"w2c[{r},{c}]" for r in range(3) for c in range(4)))
LAYOUTS = {19: range(7), 17: range(5), 16: range(1, 5), 13: range(1), 12: range(0)}
"""By the columns of a line, which of ``COLUMNS`` stand before the matrix."""
MAX_NORMALISED_FOCAL = 10.0
"""A focal length divided by the image size is about 0.3 to 3; in pixels it is hundreds."""
ROTATION_TOLERANCE = 1e-2

IntrinsicsUnit = Literal["normalised", "pixel"]
Clock = Literal["auto", "microseconds", "milliseconds", "seconds", "frames"]
"""What a text file's first column counts; ``auto``: ``clock_of``."""
CLOCKS = {"microseconds": 1e-6, "milliseconds": 1e-3, "seconds": 1.0, "frames": 1.0}
"""Seconds, or frames, of one."""


@dataclass(frozen=True)
class CameraTrack:
    """Cameras of a clip as their file has them. ``intrinsics`` float64 [F, 4] in the file's unit, ``extrinsics``
    float64 [F, 3, 4] world to camera, ``distorted`` whether a lens distortion other than 0 is given (and ignored)."""

    intrinsics: np.ndarray
    extrinsics: np.ndarray
    distorted: bool


def read_frames(path: Path, frames: int | None = None) -> Iterator[np.ndarray]:
    """The first ``frames`` frames of a video (None: all), uint8 [h, w, 3] RGB, upright, one at a time."""
    found = 0
    for _, picture in read_video(path, expected=f"expected {frames or 'its'} frames"):
        yield picture
        found += 1
        if found == frames:
            return
    if frames is not None:
        raise RawError(
            f"{path}: {found} frames found, expected at least {frames}; take a longer video or fewer frames per clip"
        )


def read_timed_cameras(path: Path, unit: IntrinsicsUnit) -> tuple[np.ndarray, CameraTrack]:
    """All cameras of such a file in the order of their first column, and that column, float64 [N], rising: what time
    or frame each belongs to, in the file's unit (RealEstate10K: microseconds). Raises ``RawError``, also where two
    cameras have one time."""
    lines = sorted(camera_rows(path, unit), key=lambda line: line[1][0])
    if not lines:
        raise RawError(f"{path}: no camera found, expected lines of {len(COLUMNS)} columns")
    for (before, first), (number, second) in pairwise(lines):
        if first[0] == second[0]:
            raise RawError(
                f"{path}:{number}: the time {second[0]:g} of line {before} again, expected one camera for each time"
            )
    table = np.array([values for _, values in lines])
    if np.isnan(table[:, :5]).any():
        raise RawError(f"{path}: cameras without times or intrinsics found, expected lines of {len(COLUMNS)} columns")
    return table[:, 0], track_of(table.tolist())


def clock_of(times: np.ndarray) -> Clock:
    """Fractions are seconds, whole numbers in steps below 1,000 are frames, others are microseconds."""
    if (times != np.round(times)).any():
        return "seconds"
    return "frames" if len(times) < 2 or float(np.median(np.diff(times))) < 1000 else "microseconds"


def camera_rows(path: Path, unit: IntrinsicsUnit) -> Iterator[tuple[int, list[float]]]:
    """The numbers of each line as ``COLUMNS``, NaN for those that it does not give, with its own number.

    Columns stand between blanks, commas or semicolons: those of ``COLUMNS``, or without k1 k2, without the intrinsics,
    without idx; matrices of 3 x 4 or of 4 x 4 numbers. Left out are empty lines, lines that begin with #, and a first
    line that holds an address, as RealEstate10K's files have, or names of columns.
    """
    for number, line in enumerate(read_text(path, "a camera file").split("\n"), 1):
        words = re.split(r"[\s,;]+", line.strip(" \t,;"))
        named = not any(re.match(r"[-+.\d]|nan|inf", word, re.IGNORECASE) for word in words)
        if words[0] and words[0][0] != "#" and not (number == 1 and ("://" in line or named)):
            yield number, _camera_row(words, f"{path}:{number}", unit)


def track_of(rows: list[list[float]]) -> CameraTrack:
    """Rows of ``COLUMNS``."""
    table = np.array(rows)
    return CameraTrack(
        table[:, 1:5], table[:, 7:].reshape(-1, 3, 4), bool(np.any(np.nan_to_num(table[:, 5:7], nan=0) != 0))
    )


def _camera_row(words: list[str], where: str, unit: IntrinsicsUnit) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise RawError(f"{where}: {error}, expected {len(COLUMNS)} numbers") from error
    if len(values) - 4 in LAYOUTS and values[-4:] == [0, 0, 0, 1]:
        values = values[:-4]
    if len(values) not in LAYOUTS:
        raise RawError(
            f"{where}: {len(words)} columns found, expected {len(COLUMNS)} "
            f"(idx fx fy cx cy k1 k2 and the 12 numbers of w2c, row by row), or fewer of those before the matrix"
        )
    if not np.isfinite(values).all():
        raise RawError(f"{where}: {words[int(np.argmin(np.isfinite(values)))]} found, expected finite numbers")
    row = np.full(len(COLUMNS), np.nan)
    row[list(LAYOUTS[len(values)])], row[7:] = values[:-12], values[-12:]
    if np.isfinite(row[1]):
        check_focal(row[1:3], where, unit)
    check_rotation(row[7:].reshape(3, 4), where)
    return row.tolist()


def check_focal(focal: np.ndarray, where: str, unit: IntrinsicsUnit) -> None:
    """Raises ``RawError`` where focal lengths [2] cannot be of a unit."""
    if min(focal) <= 0:
        raise RawError(f"{where}: focal lengths {focal[0]:g} {focal[1]:g} found, expected numbers above 0")
    if unit == "normalised" and max(focal) > MAX_NORMALISED_FOCAL:
        raise RawError(
            f"{where}: focal length {max(focal):g} found, expected one divided by the image size (below "
            f"{MAX_NORMALISED_FOCAL:g}); if the file has pixels, give --intrinsics pixel"
        )
    if unit == "pixel" and max(focal) <= MAX_NORMALISED_FOCAL:
        raise RawError(
            f"{where}: focal length {max(focal):g} found, expected pixels (above {MAX_NORMALISED_FOCAL:g}); if "
            f"the file divides by the image size, give --intrinsics normalised"
        )


def check_rotation(matrix: np.ndarray, where: str, name: str = "w2c") -> None:
    """Raises ``RawError`` where the left 3 x 3 of a matrix [3 or 4, 4] is no rotation."""
    rotation = matrix[:3, :3]
    error = max(np.abs(rotation @ rotation.T - np.eye(3)).max(), abs(np.linalg.det(rotation) - 1))
    if not error <= ROTATION_TOLERANCE:
        raise RawError(
            f"{where}: the left 3 x 3 of {name} is off a rotation by {error:.3g}, expected a "
            f"{'world-to-camera' if name == 'w2c' else 'rigid'} matrix, row by row"
        )
