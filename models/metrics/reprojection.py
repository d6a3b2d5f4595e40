"""Whether the depths of a clip agree with each other through its cameras. Ours; no truth is needed."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.data.fantasy_world.cameras import project, unproject
from stagecoach.models.metrics.metric import Metric, Unavailable

METRICS = (
    *(Metric(f"reprojection_depth{end}", "of the depth") for end in ("", "_given")),
    *(Metric(f"reprojection_colour{end}", "of full brightness") for end in ("", "_given")),
)
OCCLUDED = 1.05
"""A point this many times as far as what is seen there is taken as hidden behind it."""


def reprojection_errors(
    depth: Tensor,
    extrinsics: Tensor,
    intrinsics: Tensor,
    frames: Tensor | None = None,
    step: int = 1,
    given: bool = False,
) -> dict[str, float]:
    """The pixels of each frame i, seen from frame i + ``step`` by their own depth: ``reprojection_depth``, the median
    of |z - d| / d of their depth z there and the depth d found there, and with ``frames`` ``reprojection_colour``, the
    mean difference of the colours. Over the pixels of all pairs that land inside the picture, on valid depth, and are
    not hidden there.

    Args:
        depth: ``[F, H, W]`` z-depth, 0 where there is none.
        extrinsics: ``[F, 3, 4]``, world to camera, predicted by the same network or given.
        intrinsics: ``[F, 4]`` in pixels.
        frames: ``[F, 3, H, W]`` in 0..1.
        given: whether the cameras are those that were asked for; names then end in ``_given``.

    Raises ``Unavailable`` where no pixel is seen twice.
    """
    height, width = depth.shape[-2:]
    depth, extrinsics, intrinsics = depth.double(), extrinsics.double(), intrinsics.double()
    points = unproject(depth[:-step], intrinsics[:-step], extrinsics[:-step]).flatten(1, 2)
    pixels, z = project(points, intrinsics[step:], extrinsics[step:])
    # The middle of pixel 0 is at 0.5, as grid_sample has it without aligned corners.
    grid = (pixels / pixels.new_tensor([width, height]) * 2 - 1)[:, :, None]
    inside = (grid.abs() < 1).all(-1)[..., 0] & (depth[:-step].flatten(1) > 0) & (z > 1e-6)
    grid = torch.where(inside[..., None, None], grid, 0.0)
    there = depth[step:, None] > 0
    # Of a plane the inverse of the depth is linear over the picture.
    inverse = torch.where(there, 1 / depth[step:, None].clamp_min(1e-12), 0.0)
    whole = _sample(there.double(), grid)[:, 0] > 1 - 1e-6
    d = 1 / _sample(inverse, grid)[:, 0].clamp_min(1e-12)
    seen = inside & whole & (z <= OCCLUDED * d)
    if not seen.any():
        raise Unavailable(f"no pixel of the clip is seen again {step} frames later")
    end = "_given" if given else ""
    found = {f"reprojection_depth{end}": ((z - d).abs() / d)[seen].median().item()}
    if frames is not None:
        colours = _sample(frames[step:].double(), grid)
        change = (colours - frames[:-step].double().flatten(2)).abs().mean(1)
        found[f"reprojection_colour{end}"] = change[seen].mean().item()
    return found


def _sample(maps: Tensor, grid: Tensor) -> Tensor:
    """Bilinear: ``[N, C, H, W]`` at ``[N, P, 1, 2]`` -> ``[N, C, P]``."""
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)[..., 0]
