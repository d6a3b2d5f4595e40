"""Poses from JSON: one file per frame, or one file of a whole clip.

A frame is ``{"keypoints": [[x, y, confidence], ...]}`` or a list of ``{"x", "y", "confidence"}``, always 134 points in
DWPose's order; a clip is ``{"poses": [{"frame_id", "keypoints"}, ...]}``. Poses are not detected here.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import read_json
from stagecoach.data.dance_with_music.footage import numbered_files
from stagecoach.data.dance_with_music.schema import KEYPOINTS
from stagecoach.data.dance_with_music.skeleton import CONFIDENT

PoseUnit = Literal["normalised", "pixel"]
POSES = f"poses with {KEYPOINTS} DWPose points per frame; detect them first, this builder does not"
CANVAS = 512
"""What pixels are divided by: the layout's poses were found in pictures of 512 x 512."""
NORMALISED_LIMIT = 2.0
"""Points may lie somewhat outside of a picture, but not this far."""


def pose_count(path: Path) -> int:
    """How many frames a folder or file of poses holds. Raises ``RawError``."""
    return len(numbered_files(path, (".json",))) if path.is_dir() else len(_clip(path))


def read_poses(path: Path, chosen: np.ndarray, unit: PoseUnit) -> tuple[np.ndarray, np.ndarray]:
    """Points float32 [F, 134, 2] divided by width and height, and confidences float32 [F, 134] in 0..1, of the source
    frames ``chosen``. Raises ``RawError``, also where the numbers contradict the ``unit``."""
    if path.is_dir():
        files = numbered_files(path, (".json",))
        names = [files[n] for n in sorted(files)]
        needed = {int(k): _points(read_json(names[k], POSES), str(names[k])) for k in np.unique(chosen)}
    else:
        frames = _clip(path)
        needed = {int(k): _points(frames[k], f"{path}: pose {k}") for k in np.unique(chosen)}
    table = np.stack([needed[int(k)] for k in chosen])
    xy, conf = table[..., :2], table[..., 2].clip(0, 1)
    _check_unit(xy[conf >= CONFIDENT], path, unit)
    return (xy / (CANVAS if unit == "pixel" else 1)).astype(np.float32), conf.astype(np.float32)


def _check_unit(points: np.ndarray, path: Path, unit: PoseUnit) -> None:
    if not len(points):
        return
    largest = float(np.abs(points).max())
    if unit == "normalised" and largest > NORMALISED_LIMIT:
        raise RawError(
            f"{path}: a coordinate of {largest:g} found, expected points divided by width and height; give "
            f"--pose-unit pixel if they are pixels of {CANVAS}"
        )
    if unit == "pixel" and largest <= NORMALISED_LIMIT:
        raise RawError(
            f"{path}: no coordinate above {largest:g} found, expected pixels of {CANVAS}; give --pose-unit "
            f"normalised if they are divided by width and height"
        )


@lru_cache(maxsize=4)
def _clip(path: Path) -> list[Any]:
    """The frames of a clip's file, which have ``frame_id`` 0, 1, 2 ... or none; or the only frame of a frame's file."""
    content = read_json(path, POSES)
    if isinstance(content, dict) and "keypoints" in content:
        return [content]
    frames = content.get("poses") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise RawError(
            f"{path}: no list 'poses' found, expected one entry with 134 keypoints per frame of the "
            f"video, or 'keypoints' of one frame"
        )
    ids = [frame.get("frame_id", k) if isinstance(frame, dict) else k for k, frame in enumerate(frames)]
    if ids not in (list(range(len(ids))), list(range(1, len(ids) + 1))):
        raise RawError(
            f"{path}: frame_id {ids[:4]}... found, expected 0, 1, 2, ... (or from 1), one for each frame of the video"
        )
    return frames


def _points(frame: Any, where: str) -> np.ndarray:
    """float64 [134, 3]: x, y, confidence."""
    points = frame.get("keypoints") if isinstance(frame, dict) else None
    if not isinstance(points, list):
        raise RawError(f"{where}: no list 'keypoints' found, expected {KEYPOINTS} times [x, y, confidence]")
    if len(points) != KEYPOINTS:
        hint = "; 133 are COCO-WholeBody's without the neck that DWPose inserts" if len(points) == KEYPOINTS - 1 else ""
        raise RawError(f"{where}: {len(points)} keypoints found, expected DWPose's {KEYPOINTS}{hint}")
    try:
        table = np.array([[p["x"], p["y"], p["confidence"]] if isinstance(p, dict) else p for p in points], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise RawError(
            f"{where}: keypoints are not all [x, y, confidence] ({type(error).__name__}: {error}), expected numbers"
        ) from error
    if table.shape != (KEYPOINTS, 3) or not np.isfinite(table).all():
        raise RawError(
            f"{where}: keypoints of shape {table.shape} found, some perhaps not finite, expected "
            f"({KEYPOINTS}, 3) finite numbers"
        )
    return table
