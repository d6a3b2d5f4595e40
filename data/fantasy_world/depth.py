"""Depth of a clip: which pixels have one, in the unit of the cameras, and the scene's scale."""

from dataclasses import dataclass

import numpy as np
import torch

from stagecoach.data.building.jobs import RawError
from stagecoach.data.fantasy_world.cameras import unproject
from stagecoach.data.fantasy_world.options import ClipOptions

MILLIMETRE = 1e-3
LARGEST_16_BITS = 65535.0
SKY = 100.0
"""Times the median depth of a clip: nothing that far in a scene has a depth that anything could tell."""
OUTLYING = 10.0
"""Times the median distance of a clip's points: what is farther does not count for the scale."""
SAMPLED = 1 << 18
"""Pixels at most that medians and quantiles are taken of."""
FLOAT16_MAX = float(np.finfo(np.float16).max)
FLOAT16_MIN = float(np.finfo(np.float16).smallest_normal)


def depth_of(values: np.ndarray, options: ClipOptions) -> np.ndarray:
    """What the numbers of a depth file say: z-depth float32 in the unit of the translations, 0 where there is none.

    Whole numbers are millimetres with 65535 for no depth, as depth cameras and most data sets write 16-bit pictures,
    unless the options say otherwise.
    """
    whole = values.dtype.kind in "iu"
    marks = options.depth_invalid or ((LARGEST_16_BITS,) if whole else ())
    scale = options.depth_scale or (MILLIMETRE if whole and options.depth_kind == "depth" else 1.0)
    numbers = values.astype(np.float32)
    valid = np.isfinite(numbers) & (numbers > 0)
    for mark in marks:
        valid &= numbers != np.float32(mark)
    if options.depth_kind == "disparity":
        numbers = np.divide(1, numbers, where=valid, out=np.zeros_like(numbers))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(valid, numbers * np.float32(scale), 0)


def valid_depth(depth: np.ndarray, options: ClipOptions) -> np.ndarray:
    """``depth`` with 0 where it is not finite, not in front of the camera, or so far that it can only be sky."""
    valid = np.isfinite(depth) & (depth > 0)
    if not valid.any():
        return np.zeros_like(depth)
    farthest = options.depth_max or SKY * float(np.median(_sampled(depth[valid])))
    return np.where(valid & (depth <= farthest), depth, 0)


@dataclass(frozen=True)
class Scene:
    """``scale``: what depth and translations are divided by. ``valid``: part of the pixels that have a depth."""

    scale: float
    valid: float


def measure_scene(
    depth: torch.Tensor, intrinsics: torch.Tensor, extrinsics: torch.Tensor, options: ClipOptions, where: str
) -> Scene:
    """The scale, the mean distance of the valid world points [F, H, W] from camera 0 (FantasyWorld, data section), of
    those that count. Raises ``RawError`` where no pixel has a depth.

    Frame by frame, since the points of a whole clip in double precision are half a gigabyte.
    """
    step = max(int(depth[0].numel() * len(depth) / SAMPLED), 1)
    few, reach = [], np.inf
    for distances in _distances(depth, intrinsics, extrinsics):
        few.append(distances[::step])
    sample = torch.cat(few)
    if not len(sample):
        raise RawError(f"{where}: no valid depth found (finite and above 0) inside the crop, expected some")
    reach = OUTLYING * float(sample.median())
    if options.scale_quantile < 1:
        reach = min(reach, float(sample.quantile(options.scale_quantile)))
    total, count, valid = 0.0, 0, 0
    for distances in _distances(depth, intrinsics, extrinsics):
        near = distances[distances <= reach]
        total, count, valid = total + float(near.sum()), count + near.numel(), valid + distances.numel()
    return Scene(total / count, valid / depth.numel())


def _distances(depth: torch.Tensor, intrinsics: torch.Tensor, extrinsics: torch.Tensor):
    for map_, inner, outer in zip(depth, intrinsics, extrinsics, strict=True):
        yield unproject(map_.double(), inner, outer).norm(dim=-1)[map_ > 0]


def stored_depth(depth: torch.Tensor, where: str) -> np.ndarray:
    """Scaled depth as shards hold it, float16 with 0 for none: also where the number is too large or too small for its
    digits. Raises ``RawError`` where that would be most of them."""
    fits = (depth >= FLOAT16_MIN) & (depth <= FLOAT16_MAX)
    lost = 1 - float(fits.sum()) / max(int((depth > 0).sum()), 1)
    if lost > 0.5:
        raise RawError(
            f"{where}: depth is about {float(depth[depth > 0].median()):.1g} of the scene's scale, which cameras far "
            "apart set, expected depth and camera translations in one unit; give --depth-scale"
        )
    return torch.where(fits, depth, 0).half().numpy()


def _sampled(values: np.ndarray) -> np.ndarray:
    return values[:: max(len(values) // SAMPLED, 1)]
