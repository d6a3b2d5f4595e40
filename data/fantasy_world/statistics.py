"""What is counted of FantasyWorld's samples, and what it says."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stagecoach.data.building.jobs import EncodedSample, SumStatistics
from stagecoach.data.fantasy_world.cameras import POSE_SIZE, encode_pose
from stagecoach.data.fantasy_world.warp import check_warp

WARP_EDGES = 0.001, 0.003, 0.006, 0.01, 0.02, 0.05, 0.1
"""Upper ends of the bins of the warp's error but the last, which has none."""


class ClipStatistics(SumStatistics):
    """Sums from which the trivial predictors follow that a trained network must beat.

    ``depth_sum``, ``depth_count`` over valid pixels, in units of the scene scale, of ``pixel_count``; ``camera_sum``
    [F][9] of the pose encodings (translation, quaternion, field of view), ``camera_count`` samples;
    ``distorted_count`` clips with a lens distortion, which ``sample.counted`` says; ``warp_counts`` clips by the error
    of frame 0 warped into a later one (``WARP_EDGES``), and last those of which it says nothing; ``log_scale_sum``,
    ``log_scale_square_sum``, ``scale_count`` of the decimal logarithms of the scales, of the samples that tell theirs.
    """

    def __init__(self, frames: int) -> None:
        super().__init__(
            depth_sum=0.0,
            depth_count=0,
            pixel_count=0,
            camera_sum=np.zeros((frames, POSE_SIZE)),
            camera_count=0,
            distorted_count=0,
            warp_counts=np.zeros(len(WARP_EDGES) + 2, np.int64),
            log_scale_sum=0.0,
            log_scale_square_sum=0.0,
            scale_count=0,
        )

    def count(self, sample: EncodedSample) -> dict[str, Any]:
        depth, extrinsics, intrinsics = (sample.arrays[name] for name in ("depth", "extrinsics", "intrinsics"))
        pose = encode_pose(torch.from_numpy(extrinsics), torch.from_numpy(intrinsics), *depth.shape[1:])
        warp, scale = check_warp(depth, extrinsics, intrinsics).error, sample.meta.get("scale")
        logarithm = np.log10(scale) if isinstance(scale, float) and 0 < scale < np.inf else None
        return {
            "depth_sum": float(depth.sum(dtype=np.float64)),
            "depth_count": int(np.count_nonzero(depth)),
            "pixel_count": depth.size,
            "camera_sum": pose.double().numpy(),
            "camera_count": 1,
            "distorted_count": int(sample.counted),
            "warp_counts": np.eye(len(WARP_EDGES) + 2, dtype=np.int64)[
                -1 if warp is None else np.searchsorted(WARP_EDGES, warp, "right")
            ],
            "log_scale_sum": float(logarithm or 0),
            "log_scale_square_sum": float((logarithm or 0) ** 2),
            "scale_count": int(logarithm is not None),
        }


def describe(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """What the sums say to people: the error of the warp, the valid part of depth, and the scales. Empty for sums of
    before they were counted."""
    if "warp_counts" not in statistics or not statistics["camera_count"]:
        return {}
    names = [*(f"below {edge:g}" for edge in WARP_EDGES), f"from {WARP_EDGES[-1]:g} on", "says nothing (nearly still)"]
    counts = zip(names, statistics["warp_counts"], strict=True)
    found = {
        "warp error": {name: count for name, count in counts if count},
        "valid depth": f"{100 * statistics['depth_count'] / statistics['pixel_count']:.1f} %",
    }
    if statistics["scale_count"]:
        mean = statistics["log_scale_sum"] / statistics["scale_count"]
        variance = statistics["log_scale_square_sum"] / statistics["scale_count"] - mean**2
        found["scene scale"] = f"{10**mean:.3g}, times or through {10 ** np.sqrt(max(variance, 0)):.2g}"
    return found
