"""The forms in which programs write poses, as DWPose's 134 points: x, y and confidence of each person of a frame.

- ``keypoints``: 134 points in DWPose's order, or COCO-WholeBody's 133 (MMPose, RTMPose), each ``[x, y, confidence]``,
  ``{"x", "y", "confidence"}`` or ``[x, y]`` with separate ``keypoint_scores``; of several persons as ``instances``.
- ``people``: OpenPose's, 18 or 25 points of the body, 70 of the face, 21 of each hand.
- ``bodies``, ``hands``, ``faces``: the dictionary that DWPose's detector gives (candidate, subset, score).

A point with a number that is null or not finite was not found: its confidence is 0.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.pose_checks import COCO_NECK, NO_MIDDLE, off_middle
from stagecoach.data.dance_with_music.schema import KEYPOINTS
from stagecoach.data.dance_with_music.skeleton import BODY, FACE, FEET, LEFT_HAND, RIGHT_HAND

PoseOrder = Literal["dwpose", "coco"]
Form = Literal["keypoints", "openpose", "dwpose"]

WHOLE_BODY = KEYPOINTS - 1
NECK = 1
_FROM_COCO = (0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""Of our 18 body points in COCO's; -1 is the neck, which COCO has not."""
_SHOULDERS = [5, 6]
"""COCO's."""
_FROM_BODY_25 = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
_FEET_BODY_25 = slice(19, 25)
_PARTS = {
    "pose_keypoints_2d": (BODY, (18, 25)),
    "face_keypoints_2d": (FACE, (68, 70)),
    "hand_left_keypoints_2d": (LEFT_HAND, (21,)),
    "hand_right_keypoints_2d": (RIGHT_HAND, (21,)),
}
"""OpenPose's lists and how many points they may have; the last two of a face's 70 are the pupils."""


def form_of(frame: Any) -> Form:
    if isinstance(frame, Mapping) and "people" in frame:
        return "openpose"
    return "dwpose" if isinstance(frame, Mapping) and "bodies" in frame else "keypoints"


def read_people(frame: Any, order: PoseOrder, where: str) -> list[np.ndarray]:
    """The persons of a frame, float64 [134, 3] each, as the file numbers them; none where nobody was found. A point
    that was not found is 0, 0, 0. ``order``: of 134 points; 133 are COCO's. Raises ``RawError``."""
    form = form_of(frame)
    if form == "openpose":
        people = _list(frame["people"], "people", where)
        return [_openpose(person, f"{where}, person {k}") for k, person in enumerate(people)]
    if form == "dwpose":
        return _dwpose(frame, where)
    if isinstance(frame, Mapping) and "instances" in frame:
        people = _list(frame["instances"], "instances", where)
        return [_keypoints(person, order, f"{where}, instance {k}") for k, person in enumerate(people)]
    if isinstance(frame, Mapping) and frame.get("keypoints", 0) in (None, []):
        return []
    return [_keypoints(frame, order, where)]


def from_coco(points: np.ndarray) -> np.ndarray:
    """COCO-WholeBody's points [133, 3] in DWPose's order, [134, 3]: the neck is the middle of the shoulders, as sure as
    the less sure of them."""
    out = np.zeros((KEYPOINTS, 3))
    out[BODY] = points[list(_FROM_COCO)]
    shoulders = points[_SHOULDERS]
    sure = shoulders[:, 2].min()
    out[NECK] = [*shoulders[:, :2].mean(0), sure] if sure > 0 else 0
    out[FEET.start :] = points[17:]
    return out


def _keypoints(person: Any, order: PoseOrder, where: str) -> np.ndarray:
    points = person.get("keypoints") if isinstance(person, Mapping) else None
    if not isinstance(points, list):
        raise RawError(
            f"{where}: no list 'keypoints' found, expected {KEYPOINTS} times [x, y, confidence], OpenPose's 'people' "
            "or DWPose's 'bodies'"
        )
    scores = next((person[name] for name in ("keypoint_scores", "scores") if name in person), None)
    if scores is None and points and all(isinstance(p, int | float | None) for p in points):
        points = [points[k : k + 3] for k in range(0, len(points), 3)]
    if len(points) not in (KEYPOINTS, WHOLE_BODY):
        raise RawError(
            f"{where}: {len(points)} keypoints found, expected DWPose's {KEYPOINTS} or COCO-WholeBody's {WHOLE_BODY}"
        )
    columns = 3 if scores is None else 2
    try:
        rows = [
            [np.nan] * columns if p is None else [p["x"], p["y"], p["confidence"]] if isinstance(p, dict) else p
            for p in points
        ]
        table = np.array(rows, np.float64)
        if scores is not None:
            table = np.concatenate([table, np.array(scores, np.float64)[:, None]], 1)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RawError(
            f"{where}: keypoints are not all [x, y, confidence] ({type(error).__name__}: {error}), expected numbers"
        ) from error
    if table.shape != (len(points), 3):
        raise RawError(
            f"{where}: keypoints of shape {table.shape} found, expected ({len(points)}, 3): x, y, confidence"
        )
    return arrange(table, order, where)


def arrange(points: np.ndarray, order: PoseOrder, where: str) -> np.ndarray:
    """[133 or 134, 3] -> [134, 3] in DWPose's order, not found what is not finite. COCO's 134 have the neck behind its
    17 points of the body. Raises ``RawError`` where it is elsewhere."""
    points = _found(points)
    if len(points) == WHOLE_BODY:
        return from_coco(points)
    if order == "dwpose":
        return points
    if off_middle(points, *COCO_NECK) > NO_MIDDLE:
        raise RawError(
            f"{where}: point 17 is not in the middle of points 5 and 6, expected the neck there in COCO's order; leave "
            "--pose-order out for DWPose's"
        )
    return from_coco(np.delete(points, 17, 0))


def _openpose(person: Any, where: str) -> np.ndarray:
    out = np.zeros((KEYPOINTS, 3))
    if not isinstance(person, Mapping) or not person.get("pose_keypoints_2d"):
        raise RawError(f"{where}: no 'pose_keypoints_2d' found, expected OpenPose's x, y, confidence, ...")
    for name, (part, counts) in _PARTS.items():
        flat = person.get(name)
        if not flat:
            continue
        points = _table(flat, name, where).reshape(-1)
        if len(points) not in [3 * count for count in counts]:
            expected = " or ".join(map(str, counts))
            raise RawError(
                f"{where}: {name!r} has {len(points)} numbers, expected x, y, confidence of {expected} points"
            )
        points = _found(points.reshape(-1, 3))
        if len(points) == 25:
            out[FEET] = points[_FEET_BODY_25]
            points = points[list(_FROM_BODY_25)]
        out[part] = points[: part.stop - part.start]
    return out


def _dwpose(frame: Mapping[str, Any], where: str) -> list[np.ndarray]:
    """``candidate`` [n * 18, 2], ``subset`` [n, 18] (rows of it, -1 where not found), ``score`` [n, 18]; ``faces`` [n,
    68, 2]; ``hands`` [2 n, 21, 2], left ones first; with their scores or -1 where not found. What has no score is as
    sure as can be where it was found."""
    bodies = frame["bodies"] if isinstance(frame["bodies"], Mapping) else {}
    if "candidate" not in bodies or "subset" not in bodies:
        raise RawError(f"{where}: 'bodies' without 'candidate' and 'subset' found, expected DWPose's dictionary")
    candidate = _table(bodies["candidate"], "candidate", where)
    subset = _table(bodies["subset"], "subset", where)
    if not subset.size:
        return []
    people = len(subset)
    if candidate.ndim != 2 or candidate.shape[1] < 2 or subset.ndim != 2 or subset.shape[1] < 18:
        raise RawError(
            f"{where}: candidate {candidate.shape} and subset {subset.shape} found, expected [n * 18, 2] and [n, 18]"
        )
    rows = np.nan_to_num(subset[:, :18], nan=-1).astype(int)
    if rows.max(initial=-1) >= len(candidate):
        raise RawError(f"{where}: subset names row {rows.max()} of {len(candidate)} in candidate, expected one of them")
    score = _table(bodies["score"], "score", where) if "score" in bodies else np.ones(rows.shape)
    out = np.zeros((people, KEYPOINTS, 3))
    _put(
        out, BODY, candidate[rows.clip(0)][..., :2], np.where(rows >= 0, _shaped(score, rows.shape, "score", where), 0)
    )
    for name, parts in (("faces", (FACE,)), ("hands", (LEFT_HAND, RIGHT_HAND)), ("foot", (FEET,))):
        given, scores = frame.get(name), frame.get(f"{name}_score")
        if isinstance(given, Mapping):
            given, scores = given.get("candidate"), given.get("subset")
        if given is None or not len(given):
            continue
        points = _table(given, name, where)
        count = parts[0].stop - parts[0].start
        xy = _shaped(points, (len(parts) * people, count, 2), name, where)
        sure = (
            (xy >= 0).all(-1).astype(float)
            if scores is None
            else _shaped(_table(scores, f"{name}_score", where), xy.shape[:2], f"{name}_score", where)
        )
        for k, part in enumerate(parts):
            persons = slice(k * people, (k + 1) * people)
            _put(out, part, xy[persons], np.where((xy[persons] < 0).all(-1), 0, sure[persons]))
    return [_found(person) for person in out]


def _put(out: np.ndarray, part: slice, xy: np.ndarray, sure: np.ndarray) -> None:
    out[:, part, :2], out[:, part, 2] = xy, sure


def _found(points: np.ndarray) -> np.ndarray:
    """0 where a number is not finite."""
    return np.where(np.isfinite(points).all(-1, keepdims=True), points, 0.0)


def _list(value: Any, name: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise RawError(f"{where}: {name!r} is {type(value).__name__}, expected a list of persons")
    return value


def _table(value: Any, name: str, where: str) -> np.ndarray:
    try:
        return np.array(value, np.float64)
    except (TypeError, ValueError) as error:
        raise RawError(f"{where}: {name!r} does not hold numbers alone ({error}), expected an array of them") from error


def _shaped(values: np.ndarray, shape: tuple[int, ...], name: str, where: str) -> np.ndarray:
    if values.shape != shape:
        raise RawError(f"{where}: {name!r} has shape {list(values.shape)}, expected {list(shape)}")
    return values
