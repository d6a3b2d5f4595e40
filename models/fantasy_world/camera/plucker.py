"""Plücker coordinates of the camera's rays, per pixel and per token.

A ray through camera centre o with unit direction d is (o x d, d): six numbers that do not depend on which point of the
ray is named. World is the frame of camera 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.data.fantasy_world.cameras import pixel_rays
from stagecoach.models.fantasy_world.config import VAE_TIME

PLUCKER_CHANNELS = 6


def plucker(extrinsics: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """``[B, F, 3, 4]`` (w2c), ``[B, F, 4]`` (pixels) -> ``[B, F, H, W, 6]``: o x d, d through the pixel centres."""
    rays = F.normalize(pixel_rays(intrinsics, height, width), dim=-1)
    return _with_moment(rays, extrinsics)


def token_plucker(
    extrinsics: Tensor, intrinsics: Tensor, grid: tuple[int, int, int], height: int, width: int
) -> Tensor:
    """``plucker`` averaged over a token's pixels and over its latent frame's video frames: ``[B, f h w, 6]``.

    o x d is linear in d and o is one point per frame, so that the average over pixels may be taken of the directions
    before they are turned into the world; and of one frame at a time, so that ``[B, F, H, W]`` is never held.
    """
    _, h, w = grid
    frames = []
    for one in intrinsics.unbind(1):
        rays = F.normalize(pixel_rays(one, height, width), dim=-1)  # [B, H, W, 3]
        frames.append(rays.unflatten(1, (h, -1)).unflatten(3, (w, -1)).mean((2, 4)))
    rays = torch.stack(frames, 1)  # [B, F, h, w, 3]
    return average_groups(_with_moment(rays, extrinsics)).flatten(1, 3)


def average_groups(x: Tensor) -> Tensor:
    """``[B, 4(f - 1) + 1, ...]`` -> ``[B, f, ...]``: means over frames (0), (1-4), (5-8), ..., as the Wan VAE groups
    them."""
    groups = x[:, 1:].unflatten(1, (-1, VAE_TIME)).mean(2) if x.shape[1] > 1 else x[:, 1:]
    return torch.cat([x[:, :1], groups], 1)


def _with_moment(rays: Tensor, extrinsics: Tensor) -> Tensor:
    """Camera-frame directions ``[B, F, h, w, 3]`` -> ``[B, F, h, w, 6]`` in the world."""
    rotation, translation = extrinsics[..., :3], extrinsics[..., 3:]
    centre = -(rotation * translation).sum(-2)  # o = -R^T t; sums, not matmuls, which a GPU may do in TF32
    directions = (rays[..., None] * rotation[:, :, None, None]).sum(-2)  # d = R^T d_camera
    moments = torch.linalg.cross(centre[:, :, None, None].expand_as(directions), directions)
    return torch.cat([moments, directions], -1)


class PoseEncoder(nn.Module):
    """Plücker coordinates of a token -> its camera condition; 0 where the camera is withheld."""

    def __init__(self, hidden: int, dim: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(PLUCKER_CHANNELS, hidden)
        self.proj_out = nn.Linear(hidden, dim)

    def forward(self, rays: Tensor, given: Tensor) -> Tensor:
        """``[B, N, 6]`` and bool ``[B]`` -> ``[B, N, d]``."""
        return self.proj_out(F.silu(self.proj_in(rays))) * given[:, None, None].to(rays.dtype)
