"""Which of several persons dances: everybody is followed through the clip, then one of them is taken."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stagecoach.data.dance_with_music.skeleton import CONFIDENT

Person = str | int
"""``largest``, or the number that a person has in the first frame with so many."""
LARGEST = "largest"
JUMP = 0.5
"""A person moves by less than this part of the own box's diagonal from one frame to the next."""
LOST = 30
"""Frames that a person may be hidden."""


@dataclass
class _Track:
    points: np.ndarray
    seen: int
    frames: dict[int, int] = field(default_factory=dict)
    area: float = 0.0


def follow(people: Sequence[Sequence[np.ndarray]], person: Person = LARGEST) -> list[int | None] | None:
    """Of the persons [134, 3] in each frame the number of the same one, None where there is none; None instead of the
    list where no frame has the ``person``.

    A person is the one whose points are nearest to where they were, by their mean distance. ``largest`` is whose boxes
    have the largest sum of areas over the clip.
    """
    tracks: list[_Track] = []
    for number, frame in enumerate(people):
        near = sorted(
            (distance, t, k)
            for t, track in enumerate(tracks)
            if number - track.seen <= LOST
            for k, points in enumerate(frame)
            if (distance := _distance(track.points, points)) < JUMP
        )
        taken: set[int] = set()
        moved: set[int] = set()
        for _, t, k in near:
            if t not in moved and k not in taken:
                moved.add(t)
                taken.add(k)
                _add(tracks[t], number, k, frame[k])
        for k, points in enumerate(frame):
            if k not in taken and _sure(points).any():
                tracks.append(_Track(points, number))
                _add(tracks[-1], number, k, points)
    if person == LARGEST:
        chosen = max(tracks, key=lambda track: track.area, default=None)
    else:
        first = next((number for number, frame in enumerate(people) if len(frame) > int(person)), None)
        chosen = next((track for track in tracks if first is not None and track.frames.get(first) == person), None)
    return None if chosen is None else [chosen.frames.get(number) for number in range(len(people))]


def _add(track: _Track, number: int, k: int, points: np.ndarray) -> None:
    track.points, track.seen = points, number
    track.frames[number] = k
    track.area += float(np.prod(_extent(points)))


def _sure(points: np.ndarray) -> np.ndarray:
    return points[:, 2] >= CONFIDENT


def _extent(points: np.ndarray) -> np.ndarray:
    sure = _sure(points)
    return np.ptp(points[sure, :2], axis=0) if sure.any() else np.zeros(2)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean distance of the points that both have, by the larger box's diagonal."""
    both = _sure(one) & _sure(other)
    size = max(float(np.linalg.norm(_extent(points))) for points in (one, other))
    if not both.any() or not size:
        return np.inf
    return float(np.linalg.norm(one[both, :2] - other[both, :2], axis=-1).mean()) / size
