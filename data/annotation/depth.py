"""Depth of the frames of a shot by a monocular network, in the unit of its cameras."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.fantasy_world.warp import check_warp, problem

if TYPE_CHECKING:
    from stagecoach.data.annotation.cameras import CameraEstimate

TOGETHER = 4
MOST_ERROR = 0.15
"""Of a fit: the largest median relative error of depth at the cameras' points."""
ROUNDS = 20
FARTHEST = 20.0
"""Depths beyond so many times the farthest point are invalid: there disparity is next to nothing."""


class DepthEstimator(ABC):
    metric: bool
    """Whether it estimates depth; else disparity up to a factor and a shift."""

    @abstractmethod
    def estimate(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [T, H, W] of uint8 [H, W, 3] frames."""


class TransformersDepth(DepthEstimator):
    """Depth Anything, DPT, ZoeDepth and others of transformers' depth models. Raises ``EncoderError``; Depth Pro's
    processor needs torchvision, which is not among the packages of Stagecoach."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForDepthEstimation

        from stagecoach.data.encoding.encoders import default_device, load_model, load_processor

        self._device = default_device()
        self._processor = load_processor(path)
        self._model = load_model(AutoModelForDepthEstimation, path, self._device)
        config = self._model.config
        self.metric = getattr(config, "depth_estimation_type", None) == "metric" or config.model_type in METRIC

    def estimate(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        out = []
        for start in range(0, len(frames), TOGETHER):
            part = list(frames[start : start + TOGETHER])
            given = self._processor(images=part, return_tensors="pt").to(self._device, self._model.dtype)
            with torch.inference_mode():
                made = self._model(**given)
            sizes = [frame.shape[:2] for frame in part]
            found = self._processor.post_process_depth_estimation(made, target_sizes=sizes)
            out += [one["predicted_depth"].float().cpu().numpy() for one in found]
        return np.stack(out)


METRIC = ("zoedepth", "depth_pro")


def depth_entry(path: Path) -> Mapping[str, Any]:
    """What manifests say of the model in a folder, without loading it. Raises ``EncoderError``."""
    from transformers import AutoModelForDepthEstimation

    from stagecoach.data.encoding.encoders import model_entry

    return model_entry(AutoModelForDepthEstimation, path)


@dataclass(frozen=True)
class Agreed:
    """``depth`` float32 [T, H, W], 0 where invalid, and ``extrinsics`` in one unit: metres where the network is metric,
    else the median depth; ``unit``: what translations were multiplied by. ``error``: median relative error of depth at
    the cameras' points. ``warp``: that of the builder's check, None where it says nothing."""

    depth: np.ndarray
    extrinsics: np.ndarray
    unit: float
    error: float
    warp: float | None


def agree(
    maps: np.ndarray, metric: bool, cameras: CameraEstimate, where: str, most_error: float, most_warp: float
) -> Agreed:
    """One unit for depth and cameras, fitted over the whole shot at the points that the cameras have triangulated.

    Depth gets one factor. Disparity d gets a factor and a shift: 1 / z = a d + b, least absolute deviations by
    reweighting, relative in z. Raises ``RawError`` where it does not fit (``most_error``), or where the warp of frame 0
    contradicts it (``most_warp``; 1 for no such check).
    """
    at = [maps[k][_pixels(points, maps.shape[1:])] for k, points in enumerate(cameras.points)]
    value, z = np.concatenate(at).astype(np.float64), np.concatenate([points[:, 2] for points in cameras.points])
    if metric:
        value, z = value[value > 0], z[value > 0]
        unit = float(np.median(value / z)) if len(z) else 0.0
        depth = maps.astype(np.float64)
        fitted = value
    else:
        factor, shift = _fit(value, 1 / z)
        near = 1 / (FARTHEST * z.max())
        disparity = factor * maps.astype(np.float64) + shift
        depth = np.where(disparity > near, 1 / np.maximum(disparity, near), 0)
        fitted = 1 / np.maximum(factor * value + shift, near)
        unit = 1.0 if factor > 0 else 0.0
    error = float(np.median(np.abs(fitted - unit * z) / (unit * z))) if unit > 0 else np.inf
    if not error <= most_error:
        kind = "depth" if metric else "disparity"
        raise RawError(
            f"{where}: estimated {kind} is off the cameras' points by {error:.3g} (median of |z - d| / d), expected at "
            f"most {most_error:g}; the cameras or the network are wrong about this shot"
        )
    scale = 1.0 if metric else float(np.median(depth[depth > 0]))
    depth, extrinsics = (depth / scale).astype(np.float32), cameras.extrinsics.copy()
    extrinsics[..., 3] *= unit / scale
    found = check_warp(depth, extrinsics, cameras.intrinsics)
    wrong = problem(depth, extrinsics, cameras.intrinsics, found, most_warp) if most_warp < 1 else None
    if wrong:
        raise RawError(f"{where}: {wrong}")
    return Agreed(depth, extrinsics, unit / scale, error, found.error)


def _pixels(points: np.ndarray, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    column, row = (np.floor(points[:, k]).astype(np.int64).clip(0, size[1 - k] - 1) for k in (0, 1))
    return row, column


def _fit(value: np.ndarray, inverse: np.ndarray) -> tuple[float, float]:
    """a, b for a value + b = inverse, by the error relative to ``inverse``."""
    design = np.stack([value, np.ones_like(value)], 1) / inverse[:, None]
    weights = np.ones(len(value))
    found = np.zeros(2)
    for _ in range(ROUNDS):
        root = np.sqrt(weights)[:, None]
        found = np.linalg.lstsq(design * root, root[:, 0], rcond=None)[0]
        weights = 1 / np.maximum(np.abs(design @ found - 1), 1e-4)
    return float(found[0]), float(found[1])
