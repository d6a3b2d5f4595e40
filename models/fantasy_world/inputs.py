"""What a user gives the pipeline - cameras, a picture, a video - as the network takes it, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from stagecoach.data.fantasy_world.cameras import canonicalise
from stagecoach.data.fantasy_world.schema import latent_frames
from stagecoach.models.common.pictures import fitted, read_pixels
from stagecoach.models.fantasy_world.config import PATCH, VAE_SPACE

ORTHONORMAL = 1e-3
"""How far R R^T may be from the identity."""


@dataclass
class FantasyWorldOutput(BaseOutput):
    """Videos and their geometry, of B samples of F frames.

    ``frames``: as ``output_type`` says: ``np`` fp32 ``[B, F, H, W, 3]`` in 0..1, ``pt`` ``[B, F, 3, H, W]``, ``pil``
    lists of pictures, ``latent`` ``[B, 16, f, h, w]``. Geometry, fp32 on the CPU, None where it was not read:
    ``depth``, ``depth_confidence``, ``points_confidence`` ``[B, F, H, W]``, ``points`` ``[B, F, H, W, 3]`` in the world
    of camera 0, in units of the scene; the *predicted* cameras ``extrinsics`` ``[B, F, 3, 4]`` (w2c) and ``intrinsics``
    ``[B, F, 4]`` (fx fy cx cy in pixels). ``sigma_read``: the noise level at which it was read.
    """

    frames: Any
    depth: Tensor | None = None
    depth_confidence: Tensor | None = None
    points: Tensor | None = None
    points_confidence: Tensor | None = None
    extrinsics: Tensor | None = None
    intrinsics: Tensor | None = None
    sigma_read: float | None = None


def check_size(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """The latent's (f, h, w). Raises ``ValueError`` for a clip that makes none, naming the next that does."""
    step = VAE_SPACE * PATCH
    for name, size in (("height", height), ("width", width)):
        if size < step or size % step:
            near = max(round(size / step), 1) * step
            raise ValueError(f"{name} is {size}, expected a multiple of {step} pixels, such as {near}")
    return latent_frames(frames), height // VAE_SPACE, width // VAE_SPACE


def prepare_cameras(
    cameras: Any, intrinsics: Any, frames: int, height: int, width: int, samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``cameras`` ``[F, 3, 4]`` (w2c; ``[F, 4, 4]`` too) and ``intrinsics`` ``[F, 4]`` or ``[4]`` (fx fy cx cy in
    pixels of the output), for all samples or with one more axis in front for each -> extrinsics fp32 ``[B, F, 3, 4]``
    relative to frame 0, intrinsics fp32 ``[B, F, 4]`` and ``camera_given`` ``[B]``. Without cameras numbers that the
    network is not shown. Raises ``ValueError``."""
    given = torch.full((samples,), cameras is not None)
    if cameras is None:
        lens = torch.tensor([0.8 * width, 0.8 * width, width / 2, height / 2])
        return torch.eye(4)[:3].repeat(samples, frames, 1, 1), lens.repeat(samples, frames, 1), given
    if intrinsics is None:
        raise ValueError(
            "cameras are given without intrinsics, expected fx fy cx cy in pixels of the output, [F, 4] or [4]"
        )
    poses = _host(cameras, torch.float64)[..., :3, :]
    lenses = _host(intrinsics, torch.float32)
    if lenses.ndim == 1:
        lenses = lenses.expand(frames, -1)
    poses = _per_sample(poses, (frames, 3, 4), samples, "cameras")
    lenses = _per_sample(lenses, (frames, 4), samples, "intrinsics")
    if not (poses.isfinite().all() and lenses.isfinite().all()):
        raise ValueError("cameras or intrinsics hold what is no finite number, expected finite ones")
    rotation = poses[..., :3]
    error = (rotation @ rotation.transpose(-1, -2) - torch.eye(3)).abs().amax((0, 2, 3))
    if not bool((error < ORTHONORMAL).all()):
        frame = int((~(error < ORTHONORMAL)).nonzero()[0])
        raise ValueError(
            f"the camera of frame {frame} is no rotation and translation (R R^T is off by {float(error[frame]):.3g}), "
            "expected world-to-camera matrices (R | t) with x right, y down, z forward"
        )
    if bool((torch.linalg.det(rotation) < 0).any()):
        raise ValueError(
            "the cameras mirror the scene (the determinant of R is -1), expected x right, y down, z forward; change "
            "the sign of two axes instead of one"
        )
    if not bool((lenses[..., :2] > 0).all()):
        raise ValueError("intrinsics hold a focal length of 0 or less, expected fx fy cx cy in pixels of the output")
    return canonicalise(poses).float(), lenses.contiguous(), given


def _host(values: Any, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(values.cpu() if isinstance(values, Tensor) else np.asarray(values), dtype=dtype)


def _per_sample(values: Tensor, shape: tuple[int, ...], samples: int, name: str) -> Tensor:
    if tuple(values.shape) == shape:
        return values.expand(samples, *shape)
    if tuple(values.shape) != (samples, *shape):
        raise ValueError(
            f"{name} have shape {list(values.shape)}, expected {list(shape)} for all samples or "
            f"{[samples, *shape]}; the video has {shape[0]} frames"
        )
    return values


def prepare_pictures(image: Any, height: int, width: int, samples: int) -> list[np.ndarray]:
    """A picture for all samples or one each (PIL, uint8 ``[H, W, 3]``, or a tensor ``[3, H, W]`` in 0..1) -> uint8
    ``[height, width, 3]`` each, the middle of it at this size, as training has it. Raises ``ValueError``."""
    several = image if isinstance(image, Sequence) else list(image) if getattr(image, "ndim", 3) == 4 else [image]
    pictures = [fitted(read_pixels(one), height, width) for one in several]
    if len(pictures) not in (1, samples):
        raise ValueError(f"{len(pictures)} pictures given for {samples} prompts, expected one or as many")
    return pictures * (samples // len(pictures))


def prepare_videos(video: Any, height: int, width: int) -> list[np.ndarray]:
    """One video (a list of pictures, uint8 or fp32 in 0..1 ``[F, H, W, 3]``, a tensor ``[F, 3, H, W]``) or several ->
    uint8 ``[F, height, width, 3]`` each."""
    many = isinstance(video[0], list | tuple) or getattr(video, "ndim", 4) == 5
    clips = list(video) if many else [video]
    return [np.stack([fitted(read_pixels(frame), height, width) for frame in clip]) for clip in clips]
