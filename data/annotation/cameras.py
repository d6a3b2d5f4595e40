"""Cameras of a shot from its frames, by COLMAP: SIFT, neighbours in time matched, incremental mapping (Schönberger and
Frahm 2016), one camera with square pixels for all frames. It needs no weights."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stagecoach.data.building.jobs import RawError
from stagecoach.data.files import MissingPackageError
from stagecoach.data.numpy_files import map_npy

LEAST_POINTS = 20
LEAST_ANGLE, MOST_OFF = 2.0, 2.0
"""Degrees between the rays of a point that given cameras triangulate, and pixels that it may be off."""
PROCESS = "stagecoach.data.annotation.colmap_process"


@dataclass(frozen=True)
class CameraEstimate:
    """``extrinsics`` float64 [T, 3, 4] world to camera; ``intrinsics`` float64 [T, 4], fx fy cx cy in pixels, pixel
    centres at halves. ``points``: by frame what is known of depth, float64 [n, 3]: x and y in pixels and z-depth in the
    unit of the translations, which is any."""

    extrinsics: np.ndarray
    intrinsics: np.ndarray
    points: Sequence[np.ndarray]


class CameraEstimator(ABC):
    @abstractmethod
    def estimate(self, frames: Sequence[np.ndarray], where: str) -> CameraEstimate:
        """Cameras of uint8 [H, W, 3] frames of one shot. Raises ``RawError`` that names ``where`` for a shot of which
        they cannot be found."""

    @abstractmethod
    def triangulate(
        self, frames: Sequence[np.ndarray], extrinsics: np.ndarray, intrinsics: np.ndarray, where: str
    ) -> CameraEstimate:
        """The same for frames whose cameras are known, shaped as in ``CameraEstimate``: the points alone are found, in
        the unit of the translations."""


class ColmapCameras(CameraEstimator):
    """One thread and one seed, so that the result is the same each time. ``focal``: the focal length divided by the
    frames' width, 0 where it is to be found: a camera that moves along a line tells little of it."""

    def __init__(self, focal: float = 0.0) -> None:
        colmap_entry()
        self._focal = focal

    def estimate(self, frames: Sequence[np.ndarray], where: str) -> CameraEstimate:
        found = _run(frames, where, self._focal * frames[0].shape[1])
        placed = len(found["numbers"]) if found else 0
        if placed < len(frames):
            raise RawError(
                f"{where}: COLMAP places {placed} of {len(frames)} frames, expected all; a camera that only turns or "
                "stands still, moving things or too little texture leave nothing to place it by; give its cameras, or "
                "leave the video out"
            )
        rows = found["points"][:, 0]
        points = [found["points"][rows == k, 1:] for k in range(len(frames))]
        if min(map(len, points)) < LEAST_POINTS:
            raise RawError(
                f"{where}: COLMAP finds {min(map(len, points))} points in a frame, expected {LEAST_POINTS} in each; "
                "the pictures have too little texture"
            )
        focal, x, y = found["camera"]
        return CameraEstimate(found["extrinsics"], np.tile([focal, focal, x, y], (len(frames), 1)), points)

    def triangulate(
        self, frames: Sequence[np.ndarray], extrinsics: np.ndarray, intrinsics: np.ndarray, where: str
    ) -> CameraEstimate:
        matches = _run(frames, where, -1)["matches"]
        one, other = matches[:, 0].astype(np.int64), matches[:, 3].astype(np.int64)
        depths = triangulated(matches[:, 1:3], matches[:, 4:], extrinsics, intrinsics, one, other)
        numbers, places = np.concatenate([one, other]), np.concatenate([matches[:, 1:3], matches[:, 4:]])
        rows = np.concatenate([places, np.concatenate(depths)[:, None]], 1)
        points = [rows[(numbers == k) & (rows[:, 2] > 0)] for k in range(len(frames))]
        if min(map(len, points)) < LEAST_POINTS:
            raise RawError(
                f"{where}: {min(map(len, points))} points that fit the given cameras found in a frame, expected "
                f"{LEAST_POINTS} in each; the cameras are wrong, hardly move or only turn, or the pictures have too "
                "little texture"
            )
        return CameraEstimate(extrinsics, intrinsics, points)


def triangulated(
    xy: np.ndarray, seen: np.ndarray, extrinsics: np.ndarray, intrinsics: np.ndarray, one: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """z-depths [n] in the frames ``one`` and ``other`` of what lies at pixels ``xy`` and ``seen`` [n, 2] of them: where
    both rays come nearest to each other, by least squares. 0 where they meet behind a camera, under less than
    ``LEAST_ANGLE``, or farther than ``MOST_OFF`` from a pixel."""
    inner, inner2 = intrinsics[one], intrinsics[other]
    ones = np.ones((len(xy), 1))
    rays, rays2 = (np.append((at - k[:, 2:]) / k[:, :2], ones, 1) for at, k in ((xy, inner), (seen, inner2)))
    turn = extrinsics[other, :, :3] @ extrinsics[one, :, :3].transpose(0, 2, 1)
    move = extrinsics[other, :, 3] - np.einsum("nij,nj->ni", turn, extrinsics[one, :, 3])
    turned = np.einsum("nij,nj->ni", turn, rays)
    a, b, c = (turned**2).sum(1), -(turned * rays2).sum(1), (rays2**2).sum(1)
    d, e = -(turned * move).sum(1), (rays2 * move).sum(1)
    det = np.maximum(a * c - b * b, 1e-12)
    z, z2 = (c * d - b * e) / det, (a * e - b * d) / det
    there = turned * z[:, None] + move
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.linalg.norm(there[:, :2] / there[:, 2:] * inner2[:, :2] + inner2[:, 2:] - seen, axis=1)
    angle = np.degrees(np.arcsin(np.sqrt(det / (a * c)).clip(0, 1)))
    good = (z > 0) & (z2 > 0) & (angle >= LEAST_ANGLE) & (off <= MOST_OFF)
    return np.where(good, z, 0), np.where(good, z2, 0)


def _run(frames: Sequence[np.ndarray], where: str, focal: float) -> dict[str, np.ndarray]:
    """What ``colmap_process`` writes of frames, by name."""
    with tempfile.TemporaryDirectory(prefix="cameras-") as name:
        folder = Path(name)
        (folder / "frames").mkdir()
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / "frames" / f"{number:06d}.png", compress_level=1)
        command = [sys.executable, "-m", PROCESS, name, str(focal)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = " ".join(done.stderr.split())[-300:]
            raise RawError(f"{where}: COLMAP ended with exit code {done.returncode} ({said}), expected cameras")
        return {path.stem: map_npy(path) for path in folder.glob("*.npy")}


def colmap_entry() -> Mapping[str, Any]:
    """What manifests say of it, in the place of an encoder. Raises ``MissingPackageError``."""
    try:
        return {"name": "COLMAP", "version": importlib.metadata.version("pycolmap")}
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingPackageError(
            "pycolmap is not installed, expected it for cameras from frames; pip install 'stagecoach[annotate]'"
        ) from error
