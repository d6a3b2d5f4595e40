"""Cameras of a clip in time: what files hold and what paths make, seen from frame 0, cropped, read in between.

Conventions are those of ``cameras``; here everything is numpy in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from stagecoach.data.fantasy_world.cameras import (
    canonicalise,
    centres,
    quaternion_from_rotation,
    rotation_from_quaternion,
)
from stagecoach.data.fantasy_world.crop import ClipCrop


@dataclass(frozen=True)
class Cameras:
    """``extrinsics`` float64 [F, 3, 4] world to camera; ``intrinsics`` float64 [F, 4] fx fy cx cy in pixels of a
    picture of ``height`` x ``width``."""

    extrinsics: np.ndarray
    intrinsics: np.ndarray
    height: float
    width: float

    def __len__(self) -> int:
        return len(self.extrinsics)

    @property
    def centres(self) -> np.ndarray:
        """Positions -R^T t in the world, [F, 3]."""
        return centres(_tensor(self.extrinsics)).numpy()

    def relative(self) -> Cameras:
        """The same cameras in a world that is camera 0."""
        return replace(self, extrinsics=canonicalise(_tensor(self.extrinsics)).numpy())

    def scaled(self, divisor: float) -> Cameras:
        """Translations divided by ``divisor``, as by the scale of a scene."""
        return replace(self, extrinsics=self.extrinsics / np.array([1, 1, 1, divisor]))

    def fitted(self, height: int, width: int) -> Cameras:
        """The cameras of the largest centred crop of that shape, resized to it: what the builder does to a video."""
        crop = ClipCrop.of(self.height, self.width, height, width)
        return Cameras(self.extrinsics, crop.intrinsics(self.intrinsics), height, width)

    def at(self, times: np.ndarray, wanted: np.ndarray, smooth: bool = False) -> Cameras:
        """The cameras of [F] rising ``times`` at the ``wanted`` times; before the first and after the last those two.

        Rotations by spherical, positions and intrinsics by linear interpolation; positions along a Catmull-Rom spline
        where ``smooth``.
        """
        turns = quaternion_from_rotation(_tensor(self.extrinsics[..., :3])).numpy()
        index, part = _between(times, wanted)
        after = np.minimum(index + 1, len(times) - 1)
        rotations = rotation_from_quaternion(_tensor(slerp(turns[index], turns[after], part))).numpy()
        mix = part[:, None]
        if smooth:
            centres = _catmull_rom(times, self.centres, index, after, mix)
        else:
            centres = self.centres[index] * (1 - mix) + self.centres[after] * mix
        intrinsics = self.intrinsics[index] * (1 - mix) + self.intrinsics[after] * mix
        return replace(self, extrinsics=world_to_camera(rotations.swapaxes(-1, -2), centres), intrinsics=intrinsics)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))  # torch refuses negative strides


def world_to_camera(rotations: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """[F, 3, 4] of cameras at ``centres`` [F, 3] whose axes are the columns of ``rotations`` [F, 3, 3]."""
    turned = rotations.swapaxes(-1, -2)
    return np.concatenate([turned, -turned @ centres[..., None]], -1)


def slerp(first: np.ndarray, second: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Spherical interpolation of unit quaternions [n, 4] along the shorter arc, ``part`` [n] from 0 to 1 (Shoemake
    1985).

    sin(u a) / sin(a) is written with sinc, so that a = 0 is no special case.
    """
    second = np.where((first * second).sum(-1, keepdims=True) < 0, -second, second)
    apart, together = np.linalg.norm(second - first, axis=-1), np.linalg.norm(second + first, axis=-1)
    angle = 2 * np.arctan2(apart, together) / np.pi
    weights = [u * np.sinc(u * angle) / np.sinc(angle) for u in (1 - part, part)]
    return weights[0][:, None] * first + weights[1][:, None] * second


def _between(times: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index before each wanted time, and how far it lies to the next, from 0 to 1."""
    if len(times) == 1:
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted))
    index = np.clip(np.searchsorted(times, wanted, "right") - 1, 0, len(times) - 2)
    return index, np.clip((wanted - times[index]) / (times[index + 1] - times[index]), 0, 1)


def _catmull_rom(
    times: np.ndarray, values: np.ndarray, index: np.ndarray, after: np.ndarray, u: np.ndarray
) -> np.ndarray:
    """A cubic Hermite spline whose tangents are the slopes between the neighbours, at the ends those of the end pieces
    (Catmull and Rom 1974, for uneven times)."""
    last = len(times) - 1
    left, right = np.maximum(np.arange(last + 1) - 1, 0), np.minimum(np.arange(last + 1) + 1, last)
    slopes = (values[right] - values[left]) / np.maximum(times[right] - times[left], 1e-12)[:, None]
    step = (times[after] - times[index])[:, None]
    return (
        (1 + 2 * u) * (1 - u) ** 2 * values[index]
        + u * (1 - u) ** 2 * step * slopes[index]
        + u**2 * (3 - 2 * u) * values[after]
        - u**2 * (1 - u) * step * slopes[after]
    )
