"""What the numbers of poses are taken for - unit, canvas, confidence, posture - compared with the numbers."""

import math
from pathlib import Path
from typing import Literal

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.skeleton import BODY, CONFIDENT, FACE, FEET, LEFT_HAND

PoseUnit = Literal["normalised", "pixel", "centred"]
Canvas = tuple[float, float]
"""Width and height that pixels are divided by."""

OVERSHOOT = 1.25
"""DWPose's and RTMPose's confidences are heights of a fitted peak, which may be somewhat above 1."""
NORMALISED_LIMIT = 2.0
"""Points may lie somewhat outside of a picture, but not this far."""
OUTSIDE, SHARE = 0.1, 0.02
"""A found point lies far outside by more than this part of the canvas; more than this share of them are no accident."""
BELOW_ZERO = 0.2
"""Share of found coordinates below 0 that tells -1..1 from 0..1."""
ENOUGH, UPRIGHT = 10, 0.1
"""Frames whose posture says something, and the share of them in which a dancer has the neck above the hips."""
_NAMES = [
    "nose",
    "neck",
    "right shoulder",
    "right elbow",
    "right wrist",
    "left shoulder",
    "left elbow",
    "left wrist",
    "right hip",
    "right knee",
    "right ankle",
    "left hip",
    "left knee",
    "left ankle",
    "right eye",
    "left eye",
    "right ear",
    "left ear",
]
NECK, HIPS = 1, [8, 11]
OUR_NECK, COCO_NECK = (1, 2, 5), (17, 5, 6)
"""The neck and the shoulders, in DWPose's order and in COCO's with a neck behind its 17 points."""
MIDDLE, NO_MIDDLE = 0.01, 0.03
"""Parts of the body's diagonal by which a neck may be off the middle of its shoulders, and by which none is."""


def joint_name(number: int) -> str:
    """What point ``number`` of the 134 is called."""
    if number < BODY.stop:
        return _NAMES[number]
    parts = ((FEET, "foot point"), (FACE, "face point"), (LEFT_HAND, "left hand point"))
    for part, name in parts:
        if number < part.stop:
            return f"{name} {number - part.start}"
    return f"right hand point {number - LEFT_HAND.stop}"


def sure(points: np.ndarray, kind: str, path: Path) -> np.ndarray:
    """Confidences [n, 134] of points [n, 134, 3] in 0..1. -1 is a point that was not found. Raises ``RawError``."""
    conf = points[..., 2]
    given = np.where(conf == -1, 0, conf) if kind != "logit" else conf
    low, high = float(given.min()), float(given.max())
    if kind == "logit":
        return np.where((points == 0).all(-1), 0, 1 / (1 + np.exp(-conf.clip(-60, 60))))
    if kind == "percent":
        if low < 0 or not 1 < high <= 100:
            raise RawError(
                f"{path}: confidences from {low:g} to {high:g} found, expected percent; leave --pose-confidence out if "
                "they are fractions"
            )
        return given / 100
    if low < 0 or high > OVERSHOOT:
        option = "percent" if low >= 0 and high <= 100 and high > 10 else "logit"
        raise RawError(
            f"{path}: confidences from {low:g} to {high:g} found, expected fractions from 0 to 1; give "
            f"--pose-confidence {option} if they are {'logits' if option == 'logit' else option}"
        )
    return given.clip(0, 1)


def normalised(xy: np.ndarray, conf: np.ndarray, unit: PoseUnit, canvas: Canvas | None, path: Path) -> np.ndarray:
    """Points [n, 134, 2] divided by width and height. Raises ``RawError`` where found ones are of another unit."""
    found = xy[conf >= CONFIDENT]
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 0.0)
    far = max(abs(low), abs(high))
    if unit == "pixel":
        if canvas is None:
            raise RawError(f"{path}: pixels of an unknown canvas found, expected --pose-canvas WIDTHxHEIGHT with them")
        if len(found) and far <= NORMALISED_LIMIT:
            raise RawError(
                f"{path}: no coordinate above {far:g} found, expected pixels of {_size(canvas)}; give --pose-unit "
                f"normalised if they are divided by width and height"
            )
        return xy / canvas
    if far > NORMALISED_LIMIT:
        wanted = "divided by width and height" if unit == "normalised" else "from -1 to 1"
        raise RawError(
            f"{path}: a coordinate of {far:g} found, expected points {wanted}; give --pose-unit pixel if they are "
            "pixels, of the video or of --pose-canvas WIDTHxHEIGHT"
        )
    below = float((found < 0).mean()) if len(found) else 0.0
    if unit == "normalised" and below > BELOW_ZERO:
        raise RawError(
            f"{path}: {below:.0%} of the coordinates are below 0, expected points divided by width and height; give "
            "--pose-unit centred if they go from -1 to 1"
        )
    if unit == "centred" and len(found) and not below:
        raise RawError(
            f"{path}: no coordinate below 0 found, expected points from -1 to 1; give --pose-unit normalised if they "
            "are divided by width and height"
        )
    return (xy + 1) / 2 if unit == "centred" else xy


def check_places(xy: np.ndarray, conf: np.ndarray, canvas: Canvas | None, path: Path, assumed: bool) -> None:
    """Whether pixels, divided by their canvas, lie in it; and, where the canvas was ``assumed``, also beyond its upper
    left quarter. Raises ``RawError``."""
    found = conf >= CONFIDENT
    if canvas is None or not found.any():
        return
    excess = np.where(found[..., None], np.maximum(-xy, xy - 1), -np.inf).max(-1)
    if (excess[found] > OUTSIDE).mean() > SHARE:
        frame, joint = np.unravel_index(excess.argmax(), excess.shape)
        x, y = xy[frame, joint] * canvas
        raise RawError(
            f"{path}: {joint_name(int(joint))} of pose {frame} at {x:g}, {y:g}, far outside of {_size(canvas)} pixels, "
            f"as are {(excess[found] > OUTSIDE).mean():.0%} of the points; give --pose-canvas WIDTHxHEIGHT of the "
            "pictures that they were found in"
        )
    width, height = xy[found].max(0)
    if assumed and max(width, height) < 0.5:
        raise RawError(
            f"{path}: no point beyond {width * canvas[0]:g}, {height * canvas[1]:g} of {_size(canvas)} pixels, "
            "expected a dancer in the middle; give --pose-canvas WIDTHxHEIGHT of the pictures that they were found in"
        )


def off_middle(points: np.ndarray, one: int, left: int, right: int) -> float:
    """How far point ``one`` of [134, 3] is from the middle of two others, by the diagonal of the first 18; NaN where
    they were not all found."""
    body = points[BODY]
    found = body[:, 2] >= CONFIDENT
    if not found[[one, left, right]].all():
        return math.nan
    size = float(np.linalg.norm(np.ptp(body[found, :2], axis=0)))
    gap = np.linalg.norm(points[one, :2] - points[[left, right], :2].mean(0))
    return float(gap) / size if size else math.nan


def check_order(xy: np.ndarray, conf: np.ndarray, path: Path) -> None:
    """Whether the neck is where DWPose has it. Raises ``RawError`` where it is where COCO's order would put it."""
    table = np.concatenate([xy, conf[..., None]], -1)
    off = np.array([[off_middle(points, *neck) for neck in (OUR_NECK, COCO_NECK)] for points in table])
    off = off[np.isfinite(off).all(1)]
    if len(off) and np.median(off[:, 0]) > NO_MIDDLE and np.median(off[:, 1]) < MIDDLE:
        raise RawError(
            f"{path}: point 17 is the middle of points 5 and 6, and point 1 not that of 2 and 5, expected DWPose's "
            "order, the neck at 1; give --pose-order coco for COCO's with the neck behind its 17 points"
        )


def check_posture(xy: np.ndarray, conf: np.ndarray, size: tuple[int, int] | None, path: Path) -> None:
    """Whether the dancer stands: what lies or stands on the head all the time is turned, mirrored in height, or x and y
    are swapped. Raises ``RawError``."""
    seen = conf[:, [NECK, *HIPS]].min(-1) >= CONFIDENT
    if seen.sum() < ENOUGH:
        return
    torso = (xy[:, HIPS].mean(1) - xy[:, NECK])[seen] * ((1, 1) if size is None else size[::-1])
    upright = float((torso[:, 1] > np.abs(torso[:, 0])).mean())
    if upright < UPRIGHT:
        raise RawError(
            f"{path}: the neck is above the hips in {upright:.0%} of {seen.sum()} poses, expected a dancer who stands; "
            "x and y may be swapped, y counted from below, or the poses of a video turned by its rotation; give "
            "--pose-posture any if it is so"
        )


def _size(canvas: Canvas) -> str:
    return f"{canvas[0]:g} x {canvas[1]:g}"
