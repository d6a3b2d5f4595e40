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


class ColmapCameras(CameraEstimator):
    """One thread and one seed, so that the result is the same each time. ``focal``: the focal length divided by the
    frames' width, 0 where it is to be found: a camera that moves along a line tells little of it."""

    def __init__(self, focal: float = 0.0) -> None:
        colmap_entry()
        self._focal = focal

    def estimate(self, frames: Sequence[np.ndarray], where: str) -> CameraEstimate:
        with tempfile.TemporaryDirectory(prefix="cameras-") as name:
            folder = Path(name)
            (folder / "frames").mkdir()
            for number, frame in enumerate(frames):
                Image.fromarray(frame).save(folder / "frames" / f"{number:06d}.png", compress_level=1)
            command = [sys.executable, "-m", PROCESS, name, str(self._focal * frames[0].shape[1])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = " ".join(done.stderr.split())[-300:]
                raise RawError(f"{where}: COLMAP ended with exit code {done.returncode} ({said}), expected cameras")
            found = {path.stem: map_npy(path) for path in folder.glob("*.npy")}
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


def colmap_entry() -> Mapping[str, Any]:
    """What manifests say of it, in the place of an encoder. Raises ``MissingPackageError``."""
    try:
        return {"name": "COLMAP", "version": importlib.metadata.version("pycolmap")}
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingPackageError(
            "pycolmap is not installed, expected it for cameras from frames; pip install 'stagecoach[annotate]'"
        ) from error
