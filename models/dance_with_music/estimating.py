"""Poses that a request does not give, found by networks on its driving video and its photo."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stagecoach.data.annotation.poses import PoseEstimator
from stagecoach.data.dance_with_music.footage import open_footage


def estimate_video(
    estimator: PoseEstimator, path: Path, rate: float, stride: int, frames: int
) -> tuple[Tensor, tuple[int, int]]:
    """Poses fp32 ``[T, 134, 3]`` of at most ``frames`` frames at 30 / ``stride`` per second, divided by width and
    height of the video, and its height and width. ``rate``: of a folder of pictures. Raises ``ValueError`` where nobody
    is found."""
    footage = open_footage(path, rate)
    numbers, place = np.unique(footage.chosen[::stride][:frames], return_inverse=True)
    size = next(footage.read(numbers[:1].tolist())).shape[:2]
    poses = estimator.estimate(footage.read(numbers.tolist()))
    if not poses[..., 2].any():
        raise ValueError(f"{path}: nobody was found in the video, expected a dancer; give pose instead")
    return torch.from_numpy(poses[place]), (int(size[0]), int(size[1]))


def estimate_photo(estimator: PoseEstimator, picture: np.ndarray, path: Path) -> np.ndarray:
    """The pose float32 ``[134, 3]`` in a photo uint8 ``[H, W, 3]``. Raises ``ValueError`` where nobody is found."""
    pose = estimator.estimate([picture])[0]
    if not pose[:, 2].any():
        raise ValueError(f"{path}: nobody was found in the photo, expected the dancer; give photo_pose instead")
    return pose
