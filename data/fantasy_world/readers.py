"""Readers of a raw clip's files: video, cameras, depth and point maps.

Each raises ``RawError`` with one sentence that names the file, what was found and what was expected.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ImageOps

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import read_text
from stagecoach.data.pictures import open_picture
from stagecoach.data.video_frames import declared_frames as declared_frames
from stagecoach.data.video_frames import read_video

COLUMNS = ("idx", "fx", "fy", "cx", "cy", "k1", "k2", *(f"w2c[{r},{c}]" for r in range(3) for c in range(4)))
MAX_NORMALISED_FOCAL = 10.0
"""A focal length divided by the image size is about 0.3 to 3; in pixels it is hundreds."""
ROTATION_TOLERANCE = 1e-2

IntrinsicsUnit = Literal["normalised", "pixel"]


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


def read_cameras(path: Path, frames: int, unit: IntrinsicsUnit) -> CameraTrack:
    """The first ``frames`` cameras of a text file with 19 columns per line (``COLUMNS``), whitespace between them.

    A first line that holds an address, as RealEstate10K's files have, is left out; so are empty lines.
    """
    rows = [values for _, values in islice(_camera_rows(path, unit), frames)]
    if len(rows) < frames:
        raise RawError(f"{path}: {len(rows)} cameras found, expected at least {frames}, one per frame of the clip")
    return _track(rows)


def read_timed_cameras(path: Path, unit: IntrinsicsUnit) -> tuple[np.ndarray, CameraTrack]:
    """All cameras of such a file in the order of their first column, and that column, float64 [N], rising: what time
    or frame each belongs to, in the file's unit (RealEstate10K: microseconds). Raises ``RawError``, also where two
    cameras have one time."""
    lines = sorted(_camera_rows(path, unit), key=lambda line: line[1][0])
    if not lines:
        raise RawError(f"{path}: no camera found, expected lines of {len(COLUMNS)} columns")
    for (before, first), (number, second) in pairwise(lines):
        if first[0] == second[0]:
            raise RawError(
                f"{path}:{number}: the time {second[0]:g} of line {before} again, expected one camera for each time"
            )
    rows = [values for _, values in lines]
    return np.array(rows)[:, 0], _track(rows)


def _camera_rows(path: Path, unit: IntrinsicsUnit) -> Iterator[tuple[int, list[float]]]:
    """The numbers of each line, with its own."""
    for number, line in enumerate(read_text(path, "a camera file").split("\n"), 1):
        if line.strip() and not (number == 1 and "://" in line):
            yield number, _camera_row(line.split(), f"{path}:{number}", unit)


def _track(rows: list[list[float]]) -> CameraTrack:
    table = np.array(rows)
    return CameraTrack(table[:, 1:5], table[:, 7:].reshape(-1, 3, 4), bool(np.any(table[:, 5:7] != 0)))


def _camera_row(words: list[str], where: str, unit: IntrinsicsUnit) -> list[float]:
    if len(words) != len(COLUMNS):
        raise RawError(
            f"{where}: {len(words)} columns found, expected {len(COLUMNS)} "
            f"(idx fx fy cx cy k1 k2 and the 12 numbers of w2c, row by row)"
        )
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise RawError(f"{where}: {error}, expected {len(COLUMNS)} numbers") from error
    if not np.isfinite(values).all():
        raise RawError(f"{where}: {words[int(np.argmin(np.isfinite(values)))]} found, expected finite numbers")
    focal = max(values[1], values[2])
    if min(values[1], values[2]) <= 0:
        raise RawError(f"{where}: focal lengths {values[1]:g} {values[2]:g} found, expected numbers above 0")
    if unit == "normalised" and focal > MAX_NORMALISED_FOCAL:
        raise RawError(
            f"{where}: focal length {focal:g} found, expected one divided by the image size (below "
            f"{MAX_NORMALISED_FOCAL:g}); if the file has pixels, give --intrinsics pixel"
        )
    if unit == "pixel" and focal <= MAX_NORMALISED_FOCAL:
        raise RawError(
            f"{where}: focal length {focal:g} found, expected pixels (above {MAX_NORMALISED_FOCAL:g}); if "
            f"the file divides by the image size, give --intrinsics normalised"
        )
    check_rotation(np.array(values[7:]).reshape(3, 4), where)
    return values


def check_rotation(matrix: np.ndarray, where: str, name: str = "w2c") -> None:
    """Raises ``RawError`` where the left 3 x 3 of a matrix [3 or 4, 4] is no rotation."""
    rotation = matrix[:3, :3]
    error = max(np.abs(rotation @ rotation.T - np.eye(3)).max(), abs(np.linalg.det(rotation) - 1))
    if not error <= ROTATION_TOLERANCE:
        raise RawError(
            f"{where}: the left 3 x 3 of {name} is off a rotation by {error:.3g}, expected a "
            f"{'world-to-camera' if name == 'w2c' else 'rigid'} matrix, row by row"
        )


def read_maps(path: Path, frames: int, what: str, channels: int = 0) -> np.ndarray:
    """The first ``frames`` maps, [F, h, w] (``channels`` 0) or [F, h, w, channels], in the dtype of the file.

    ``path`` is a folder with one numbered ``.npy`` or 16-bit ``.png`` per frame, or one ``.npy`` or ``.npz``.
    """
    if path.is_dir():
        maps = [_read_one(file, what, channels) for file in _numbered(path, frames, what)]
        odd = next((i for i, m in enumerate(maps) if m.shape != maps[0].shape), None)
        if odd is not None:
            raise RawError(f"{path}: frame {odd} has shape {maps[odd].shape}, expected {maps[0].shape} as frame 0")
        return np.stack(maps)
    stack = _load(path, what)
    _check_rank(stack, path, what, channels, ("T",))
    if len(stack) < frames:
        raise RawError(f"{path}: {what} of {len(stack)} frames found, expected at least {frames}")
    return np.array(stack[:frames])


def count_maps(path: Path, frames: int, what: str) -> None:
    """Check that ``path`` holds maps of ``frames`` frames, without reading them."""
    if path.is_dir():
        _numbered(path, frames, what)
    elif path.suffix == ".npy" and len(stack := _load(path, what)) < frames:
        raise RawError(f"{path}: {what} of {len(stack)} frames found, expected at least {frames}")


def _numbered(folder: Path, frames: int, what: str) -> list[Path]:
    files = {}
    for file in folder.iterdir():
        match = re.search(r"(\d+)$", file.stem)
        if file.suffix in (".npy", ".png") and match:
            files[int(match[1])] = file
    first = min(files, default=0)
    for number in range(first, first + frames):
        if number not in files:
            raise RawError(
                f"{folder}: {what} of {number - first} frames in a row found, expected at least {frames} "
                f"files frame_%04d.npy or .png"
            )
    return [files[n] for n in range(first, first + frames)]


def _read_one(path: Path, what: str, channels: int) -> np.ndarray:
    if path.suffix == ".npy":
        array = np.array(_load(path, what))
    else:
        with open_picture(path) as image:
            if image.mode not in ("I;16", "I;16B", "I") and what != "mask":
                raise RawError(f"{path}: image of mode {image.mode} found, expected 16-bit grey {what}")
            array = np.asarray(ImageOps.exif_transpose(image))
    _check_rank(array, path, what, channels, ())
    return array


def _load(path: Path, what: str) -> np.ndarray:
    if path.suffix not in (".npy", ".npz"):
        raise RawError(
            f"{path}: found a {path.suffix or 'nameless'} file, expected {what} as a folder of frames, a .npy or a .npz"
        )
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as archive:
            name = what if what in archive.files else archive.files[0] if len(archive.files) == 1 else None
            if name is None:
                raise RawError(f"{path}: arrays {sorted(archive.files)} found, expected one named {what!r}")
            return archive[name]
    except RawError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise RawError(f"{path}: not readable as {what} ({error}); it may be cut short") from error
    except Exception as error:  # zipfile.BadZipFile and zlib.error share no base with the above
        raise RawError(f"{path}: damaged archive of {what} ({error})") from error


def _check_rank(array: np.ndarray, path: Path, what: str, channels: int, leading: tuple[str, ...]) -> None:
    wanted = [*leading, "H", "W", *([str(channels)] if channels else [])]
    if array.ndim != len(wanted) or (channels and array.shape[-1] != channels) or array.dtype.kind not in "fiub":
        raise RawError(
            f"{path}: {what} of shape {array.shape} and dtype {array.dtype} found, expected numbers "
            f"[{', '.join(wanted)}]"
        )
