"""What the geometry heads should say: depth, points and camera poses of a batch, derived on its device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stagecoach.data.fantasy_world.cameras import encode_pose, unproject
from stagecoach.models.common.keyed import keyed_rand


@dataclass(frozen=True)
class Targets:
    """Geometry of K frames of each sample (of all F frames for the poses), in units of the scene scale."""

    frames: Tensor
    """int64 ``[B, K]``, ascending: which frames of the clip."""
    depth: Tensor
    """fp32 ``[B, K, H, W]``: z-depth, 0 where ``valid`` is False."""
    valid: Tensor
    """bool ``[B, K, H, W]``."""
    points: Tensor
    """fp32 ``[B, K, H, W, 3]``: world points, the world being the camera of frame 0."""
    poses: Tensor
    """fp32 ``[B, F, 9]``: absT, quaternion xyzw, FoV_h, FoV_w."""

    @property
    def adjacent(self) -> Tensor:
        """bool ``[B, K - 1]``: whether frame k + 1 of the selection follows frame k in the clip."""
        return self.frames[:, 1:] - self.frames[:, :-1] == 1


def draw_frames(batch: dict, purpose: str, total: int, count: int) -> Tensor:
    """The frames of each sample that the dense heads decode in this step: int64 ``[B, min(count, total)]``, ascending.

    A run of neighbours (the temporal term of the depth loss compares neighbours) from a start that is keyed by the
    sample and uniform over the clip. A run that reaches the clip's end goes on at frame 0: so each frame is as likely
    as any other, where runs inside the clip would hardly ever train its first and last ones.
    """
    count = min(count, total)
    start = (keyed_rand(batch, purpose) * total).long().clamp_max(total - 1)
    run = start[:, None] + torch.arange(count, device=start.device)
    return (run % total).sort(dim=1).values


def all_frames(batch: dict, total: int) -> Tensor:
    """int64 ``[B, total]``: every frame."""
    return torch.arange(total, device=batch["uid"].device).expand(len(batch["uid"]), total)


def make_targets(batch: dict, frames: Tensor) -> Targets:
    """Targets for ``frames`` int64 ``[B, K]`` from the batch's ``depth`` ``[B, F, H, W]``, ``extrinsics`` ``[B, F, 3,
    4]`` and ``intrinsics`` ``[B, F, 4]``. A pixel is valid where its depth is finite and above 0."""
    extrinsics, intrinsics = batch["extrinsics"].float(), batch["intrinsics"].float()
    height, width = batch["depth"].shape[-2:]
    row = torch.arange(len(frames), device=frames.device)[:, None]
    depth = batch["depth"][row, frames].float()
    valid = torch.isfinite(depth) & (depth > 0)
    depth = torch.where(valid, depth, 0.0)
    points = unproject(depth, intrinsics[row, frames], extrinsics[row, frames])
    return Targets(
        frames=frames, depth=depth, valid=valid, points=points, poses=encode_pose(extrinsics, intrinsics, height, width)
    )
