"""Poses from files: one per frame, or one of a whole clip. Poses are not detected here.

The forms are those of ``pose_formats``; a clip is ``{"poses": [frame, ...]}``, a list of frames, MMPose's
``instance_info``, or ``.npy`` [F, 134 or 133, 3], with a further axis for several persons.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import read_json, read_npy
from stagecoach.data.dance_with_music.footage import numbered_files
from stagecoach.data.dance_with_music.persons import LARGEST, Person, follow
from stagecoach.data.dance_with_music.pose_checks import (
    Canvas,
    PoseUnit,
    check_order,
    check_places,
    check_posture,
    normalised,
    sure,
)
from stagecoach.data.dance_with_music.pose_formats import Form, PoseOrder, arrange, form_of, read_people
from stagecoach.data.dance_with_music.schema import KEYPOINTS
from stagecoach.data.dance_with_music.skeleton import CONFIDENT

POSES = f"poses with {KEYPOINTS} DWPose points per frame; detect them first, this builder does not"
SUFFIXES = (".json", ".npy")
_CANVAS_KEYS = (("canvas_width", "canvas_height"), ("width", "height"), ("image_width", "image_height"))
_OWN_UNIT: dict[Form, PoseUnit | None] = {"openpose": "pixel", "dwpose": "normalised", "keypoints": None}
SNAP = 1e-3
"""Poses by which a time may be off one, and is still its."""

Confidence = Literal["fraction", "percent", "logit"]


@dataclass(frozen=True)
class PoseReading:
    """How poses are read. None is what the file says, or else what its form, the layout or the video has.

    ``assumed`` and ``assumed_canvas`` are the layout's: of points whose form and file say nothing. ``rate``: poses per
    second; None is one for each frame of the video. ``posture`` any: nobody has to stand upright.
    """

    unit: PoseUnit | None = None
    canvas: Canvas | None = None
    confidence: Confidence = "fraction"
    order: PoseOrder = "dwpose"
    person: Person = LARGEST
    rate: float | None = None
    posture: Literal["upright", "any"] = "upright"
    assumed: PoseUnit = "normalised"
    assumed_canvas: Canvas | None = None


PLAIN = PoseReading()


@dataclass(frozen=True)
class Poses:
    """``xy`` float32 [n, 134, 2] divided by width and height, ``conf`` float32 [n, 134] in 0..1, of one person;
    ``persons``: most that a frame has; ``rate``: per second, where the file says it."""

    xy: np.ndarray
    conf: np.ndarray
    persons: int
    rate: float | None

    def __len__(self) -> int:
        return len(self.xy)

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points and confidences at ``places`` float [F] between the poses, linear between two points that were found,
        as sure as the less sure of them; else those of the nearer pose. Behind the last pose it is held."""
        places = places.clip(0, len(self) - 1)
        low = np.floor(places + SNAP).astype(int)
        part = np.where(places - low < SNAP, 0, places - low)
        high = np.minimum(low + (part > 0), len(self) - 1)
        nearer = np.where(part <= 0.5, low, high)
        both = (self.conf[low] >= CONFIDENT) & (self.conf[high] >= CONFIDENT)
        weight = part[:, None, None]
        between = (1 - weight) * self.xy[low] + weight * self.xy[high]
        xy = np.where(both[..., None], between, self.xy[nearer])
        conf = np.where(both, np.minimum(self.conf[low], self.conf[high]), self.conf[nearer])
        return xy.astype(np.float32), conf.astype(np.float32)


def pose_count(path: Path) -> int:
    """How many frames a folder or file of poses holds. Raises ``RawError``."""
    return len(numbered_files(path, SUFFIXES)) if path.is_dir() else len(_content(path)[0])


def read_poses(
    path: Path, chosen: np.ndarray, reading: PoseReading = PLAIN, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Points float32 [F, 134, 2] and confidences float32 [F, 134] of the poses ``chosen``; see ``load_poses``."""
    poses = load_poses(path, reading, size)
    return poses.xy[chosen], poses.conf[chosen]


def check_poses(path: Path, reading: PoseReading, size: tuple[int, int] | None = None) -> None:
    """Look at the first pose alone. Raises ``RawError``."""
    _load(path, reading, size, 1)


_lock = threading.Lock()


def load_poses(path: Path, reading: PoseReading, size: tuple[int, int] | None = None) -> Poses:
    """All poses of a clip, of one person. ``size``: height and width of the pictures, by which pixels are divided where
    nothing else says their canvas. Raises ``RawError``, also where the numbers contradict what they are taken for."""
    with _lock:  # segments of one dance are prepared side by side
        return _cached(path, reading, size, _stamp(path))


@lru_cache(maxsize=4)
def _cached(path: Path, reading: PoseReading, size: tuple[int, int] | None, stamp: Any) -> Poses:
    return _load(path, reading, size, None)


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the files, by which a changed one is read again."""
    files = list(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return tuple(sorted((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


def _load(path: Path, reading: PoseReading, size: tuple[int, int] | None, count: int | None) -> Poses:
    people, said, form = _people(path, reading.order, count)
    persons = max(map(len, people))
    if not persons and count is None:
        raise RawError(f"{path}: nobody found in {len(people)} poses, expected a dancer in some of them")
    everybody = [person for frame in people for person in frame]
    if everybody:
        fractions = sure(np.stack(everybody), reading.confidence, path)
        for person, own in zip(everybody, fractions, strict=True):
            person[:, 2] = own
    numbers: list[int | None] | None = [0 if frame else None for frame in people]
    if count is None and (persons > 1 or reading.person != LARGEST):
        numbers = follow(people, reading.person)
        if numbers is None:
            raise RawError(
                f"{path}: at most {persons} persons per pose found, expected one of number {reading.person}; give "
                f"--person 0 to {persons - 1}, or largest"
            )
    nobody = np.zeros((KEYPOINTS, 3))
    table = np.stack([nobody if k is None else f[k] for f, k in zip(people, numbers, strict=True)])
    conf = table[..., 2]
    unit = reading.unit or said.unit or _OWN_UNIT[form] or reading.assumed
    assumed = reading.assumed_canvas if form == "keypoints" else None
    canvas = reading.canvas or said.canvas or assumed or (size and size[::-1])
    xy = normalised(table[..., :2], conf, unit, canvas, path)
    named = reading.canvas or said.canvas or assumed
    if unit == "pixel":
        check_places(xy, conf, canvas, path, assumed=named is None and count is None)
    if form == "keypoints" and reading.order == "dwpose":
        check_order(xy, conf, path)
    if reading.posture == "upright":
        check_posture(xy, conf, size, path)
    return Poses(xy.astype(np.float32), conf.astype(np.float32), persons, said.rate)


@dataclass(frozen=True)
class _Said:
    """What a file says of its numbers."""

    unit: PoseUnit | None = None
    canvas: Canvas | None = None
    rate: float | None = None


def _people(path: Path, order: PoseOrder, count: int | None) -> tuple[list[list[np.ndarray]], _Said, Form]:
    """Everybody in the first ``count`` frames (None: in all), what the file says, and its form."""
    if not path.is_dir():
        frames, said = _content(path)
        where = [f"{path}: pose {k}" for k in range(len(frames))]
        frames = frames[:count]
    else:
        files = numbered_files(path, SUFFIXES)
        names = [files[n] for n in sorted(files)][:count]
        where = list(map(str, names))
        found = [_content(name) for name in names]
        frames, said = [], found[0][1]
        for name, (one, _) in zip(names, found, strict=True):
            if len(one) != 1:
                raise RawError(f"{name}: {len(one)} poses found, expected one, as the folder has a file for each frame")
            frames += one
    form = next((form_of(frame) for frame in frames if not isinstance(frame, np.ndarray)), "keypoints")
    people = [
        [arrange(person, order, at) for person in frame]
        if isinstance(frame, np.ndarray)
        else read_people(frame, order, at)
        for frame, at in zip(frames, where, strict=False)
    ]
    return people, said, form


def _content(path: Path) -> tuple[list[Any], _Said]:
    """The frames of a file, which have ``frame_id`` 0, 1, 2 ... or none, and what it says of them."""
    if path.suffix.lower() == ".npy":
        return list(_array(path)), _Said()
    content = read_json(path, POSES)
    frames = content
    if isinstance(content, Mapping):
        alone = any(name in content for name in ("keypoints", "people", "bodies", "instances"))
        frames = [content] if alone else content.get("poses", content.get("instance_info"))
    if not isinstance(frames, list) or not frames:
        raise RawError(
            f"{path}: no list 'poses' found, expected one entry with {KEYPOINTS} keypoints per frame of the "
            f"video, or 'keypoints', 'people' or 'bodies' of one frame"
        )
    ids = [frame.get("frame_id", k) if isinstance(frame, Mapping) else k for k, frame in enumerate(frames)]
    if len(ids) > 1 and ids not in (list(range(len(ids))), list(range(1, len(ids) + 1))):
        raise RawError(
            f"{path}: frame_id {ids[:4]}... found, expected 0, 1, 2, ... (or from 1), one for each frame of the video"
        )
    first = frames[0] if isinstance(frames[0], Mapping) else {}
    return frames, _said({**first, **content} if isinstance(content, Mapping) else first)


def _said(entry: Mapping[str, Any]) -> _Said:
    sides = next(
        (
            (float(entry[w]), float(entry[h]))
            for w, h in _CANVAS_KEYS
            if isinstance(entry.get(w), int | float) and isinstance(entry.get(h), int | float)
        ),
        None,
    )
    unit = entry.get("unit")
    rate = entry.get("fps")
    return _Said(
        unit if unit in ("normalised", "pixel", "centred") else None,
        sides if sides and min(sides) > 0 else None,
        float(rate) if isinstance(rate, int | float) and rate > 0 else None,
    )


def _array(path: Path) -> np.ndarray:
    """[F, P, 133 or 134, 3] of a file of one person or several, or of one frame."""
    table = read_npy(path, POSES)
    if table.ndim == 2:
        table = table[None]
    if table.ndim == 3:
        table = table[:, None]
    if table.ndim != 4 or table.shape[2] not in (KEYPOINTS, KEYPOINTS - 1) or table.shape[3] != 3 or not len(table):
        raise RawError(
            f"{path}: an array of shape {table.shape} found, expected [F, {KEYPOINTS} or {KEYPOINTS - 1}, 3]: x, y, "
            "confidence"
        )
    return table.astype(np.float64)
