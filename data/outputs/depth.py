"""Depth of a clip: a video to look at, numbers to work with.

Depth is z-depth float [F, H, W], in units of the scene; 0 and what is not finite is invalid.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stagecoach.data.files import atomic_file, replaced_directory, write_json
from stagecoach.data.outputs.video import write_video
from stagecoach.data.pictures import SIXTEEN_BITS, depth_colours, depth_limits

FLOAT16_MAX = float(np.finfo(np.float16).max)
SCALE_FILE = "scale.json"
MOST = SIXTEEN_BITS - 1
"""The largest value of a picture; 65535 stands for no depth in many tools."""


def write_depth_video(
    path: str | Path, depth: np.ndarray, rate: float | Fraction, limits: tuple[float, float] | None = None
) -> tuple[float, float] | None:
    """Write depth as colours over 1 / depth (near is red, invalid grey), one range for all frames, so that nothing
    flickers: ``limits``, or the 2nd to the 98th percentile of the clip. Returns the range, in 1 / depth."""
    limits = limits or depth_limits(depth)
    write_video(path, (depth_colours(frame, limits) for frame in depth), rate)
    return limits


def write_depth(path: str | Path, depth: np.ndarray, confidence: np.ndarray | None = None) -> None:
    """Write an .npz with ``depth`` and, where given, ``confidence``, float16 [F, H, W]. Depth beyond float16 becomes
    invalid, confidence beyond it the largest number."""
    arrays: dict[str, Any] = {"depth": np.where(_valid(depth) & (depth <= FLOAT16_MAX), depth, 0).astype(np.float16)}
    if confidence is not None:
        if confidence.shape != depth.shape:
            raise ValueError(f"confidence of shape {confidence.shape} found, expected {depth.shape} as depth has")
        arrays["confidence"] = np.clip(np.nan_to_num(confidence), 0, FLOAT16_MAX).astype(np.float16)
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)


def write_depth_pictures(folder: str | Path, depth: np.ndarray) -> float:
    """Write a 16-bit grey PNG for each frame, frame_%05d.png, and scale.json, which says how to read them: depth is
    value * scale, and 0 is invalid. Returns the scale, one for the clip. The folder appears when all is written."""
    valid = _valid(depth)
    scale = float(depth[valid].max()) / MOST if valid.any() else 1.0
    with replaced_directory(Path(folder), SCALE_FILE) as base:
        for k, (frame, seen) in enumerate(zip(depth, valid, strict=True)):
            # What is nearer than half a step is still something.
            values = np.where(seen, np.clip(np.round(np.where(seen, frame, 0).astype(np.float64) / scale), 1, MOST), 0)
            Image.fromarray(values.astype(np.uint16)).save(base / f"frame_{k:05d}.png")
        described: dict[str, Any] = {"scale": scale, "invalid": 0, "frames": len(depth), "depth": "value * scale"}
        write_json(base / SCALE_FILE, described)
    return scale


def _valid(depth: np.ndarray) -> np.ndarray:
    return np.isfinite(depth) & (depth > 0)
