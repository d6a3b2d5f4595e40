"""Sums over a split from which the trivial predictors follow that a trained network must beat."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stagecoach.data.building.jobs import EncodedSample, Statistics
from stagecoach.data.fantasy_world.cameras import POSE_SIZE, encode_pose


class ClipStatistics(Statistics):
    """Sums that may be added to those of another part of the split. Depth is in units of the scene scale."""

    def __init__(self, frames: int) -> None:
        self._depth_sum, self._depth_count = 0.0, 0
        self._camera_sum = np.zeros((frames, POSE_SIZE))
        self._camera_count = 0
        self._distorted = 0

    def add(self, sample: EncodedSample) -> None:
        """``depth`` [F, H, W] with 0 where invalid, ``extrinsics`` [F, 3, 4], ``intrinsics`` [F, 4]; ``counted`` says
        whether its cameras have a lens distortion."""
        depth, extrinsics, intrinsics = (sample.arrays[name] for name in ("depth", "extrinsics", "intrinsics"))
        self._depth_sum += float(depth.sum(dtype=np.float64))
        self._depth_count += int(np.count_nonzero(depth))
        pose = encode_pose(torch.from_numpy(extrinsics), torch.from_numpy(intrinsics), *depth.shape[1:])
        self._camera_sum += pose.double().numpy()
        self._camera_count += 1
        self._distorted += int(sample.counted)

    def as_dict(self) -> dict[str, Any]:
        """``depth_sum``, ``depth_count`` over valid pixels; ``camera_sum`` [F][9] of the pose encodings (translation,
        quaternion, field of view), ``camera_count`` samples; ``distorted_count`` clips with a lens distortion."""
        return {
            "depth_sum": self._depth_sum,
            "depth_count": self._depth_count,
            "camera_sum": self._camera_sum.tolist(),
            "camera_count": self._camera_count,
            "distorted_count": self._distorted,
        }
