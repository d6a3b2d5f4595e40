"""Whether a clip's depth and cameras describe one rigid scene: the warp of frame 0 into a later frame.

A unit, an order of time or a convention of cameras that was assumed wrongly moves the points of frame 0 to where the
later frame's depth is another. Conventions are those of ``cameras``; everything is numpy in double precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

GRID = 96
"""Pixels of frame 0 along each side that are warped, at most."""
LEAST_OVERLAP = 0.2
"""Of the valid pixels of frame 0; below this a nearer frame is taken."""
LEAST_PIXELS = 16
STILL = 0.01
"""Relative change of depth in place. Where nothing changes more, right and wrong cameras warp alike."""
FLOOR = 0.006
"""Errors below this come from the sampling of depth at pixels, whatever the cameras."""
CLEARLY = 3.0
"""How many times better another reading has to fit to be named as the cause."""
SCALES = 10.0 ** np.arange(-7, 7.01, 0.25)
REFINED = 10.0 ** np.linspace(-0.125, 0.125, 21)
"""Factors of depth that are tried, then those about the best of them; factors between units are among them."""
NO_SCALE = np.ones(1)


@dataclass(frozen=True)
class Warp:
    """``error``: median of |z - d| / d over the pixels of frame 0 that fall onto valid pixels of ``frame``, z their
    depth there and d that frame's; None where nothing can be said: the clip is nearly ``still``, has no depth to
    compare, or no frame sees enough of frame 0. ``overlap``: the part of its valid pixels that fall into ``frame``."""

    error: float | None
    frame: int
    overlap: float
    still: bool = False

    def as_dict(self) -> dict[str, Any]:
        error = None if self.error is None else round(self.error, 6)
        return {"error": error, "frame": self.frame, "overlap": round(self.overlap, 4), "still": self.still}


def check_warp(depth: np.ndarray, extrinsics: np.ndarray, intrinsics: np.ndarray) -> Warp:
    """Warp frame 0 into the last frame that sees a fifth of it: the last one, else that of half the time, and so on.

    Args:
        depth: z-depth [T, H, W] in the unit of the translations, 0 or not finite where invalid.
        extrinsics: world to camera [T, 3, 4], in the world of their file: once they are relative to frame 0, camera to
            world can no longer be told.
        intrinsics: fx fy cx cy in pixels of the maps [T, 4].
    """
    error, frame, overlap = _measure(depth, extrinsics, intrinsics, _candidates(len(depth)))
    if not frame:
        return Warp(None, frame, overlap, len(depth) == 1)
    still = error < STILL and _change(depth[0], depth[frame]) < STILL
    return Warp(None if still else error, frame, overlap, still)


def problem(depth: np.ndarray, extrinsics: np.ndarray, intrinsics: np.ndarray, found: Warp, most: float) -> str | None:
    """What is wrong with a clip, in words for its error message: an error above ``most``, another reading of the files
    that fits clearly better, or no frame that sees frame 0. None for a clip that passes. Arguments as ``check_warp``.
    """
    unseen = found.error is None and not found.still and found.overlap < LEAST_OVERLAP
    if not unseen and (found.error or 0) < FLOOR:
        return None
    cause = likely_cause(depth, extrinsics, intrinsics, found)
    if unseen:
        what = "no later frame sees a fifth of frame 0"
    elif (found.error or 0) > most or cause:
        what = f"frame 0 warped into frame {found.frame} is off by {found.error:.3g} of the depth there"
    else:
        return None
    return f"depth and cameras do not agree: {what}; " + (cause or "no other unit, order or convention fits either")


def likely_cause(depth: np.ndarray, extrinsics: np.ndarray, intrinsics: np.ndarray, found: Warp) -> str | None:
    """Which other reading of the files fits clearly better than the one that was ``found``, in words with the option
    that takes it; None where none does. Of readings that fit alike, the two more common mistakes.
    Arguments as ``check_warp``."""
    kept = [0, *sorted([found.frame] if found.frame else _candidates(len(depth)))]
    few, inner = depth[kept].astype(np.float64), intrinsics[kept]
    best, causes = (1.0 if found.error is None else found.error) / CLEARLY, list[str]()
    for maps, cameras, scales, text in _readings(few, extrinsics):
        outer = cameras[kept]

        def fits(scale: float, maps: np.ndarray = maps, outer: np.ndarray = outer) -> float:
            return _measure(maps * scale, outer, inner, range(len(kept) - 1, 0, -1))[0]

        scale = min(scales, key=fits)
        if len(scales) > 1:
            scale = min([scale, *scale * REFINED], key=fits)
        value = max(fits(scale), FLOOR / CLEARLY)
        if value <= best:
            causes = [*causes, text.format(f"{scale:.3g}")] if value == best else [text.format(f"{scale:.3g}")]
            best = value
    return ", or ".join(causes[:2]) or None


def _readings(depth: np.ndarray, extrinsics: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, str]]:
    """Depth, cameras, factors and what it would mean, the more common mistake first."""
    inverse = invert(extrinsics)
    yield depth, inverse, NO_SCALE, "the cameras are camera to world; give --camera-convention c2w"
    yield depth, extrinsics[::-1], NO_SCALE, "the cameras run backwards in time; check their first column"
    for axes, change in AXES.items():
        yield depth, change @ extrinsics, NO_SCALE, f"the cameras have {axes}'s axes; give --camera-axes {axes}"
        text = f"the cameras are camera to world with {axes}'s axes; give --camera-convention c2w --camera-axes {axes}"
        yield depth, change @ inverse, NO_SCALE, text
    text = "depth has another unit than the cameras; make it {} times as large (--depth-scale)"
    yield depth, extrinsics, SCALES, text
    with np.errstate(divide="ignore"):
        disparity = np.where(depth > 0, 1 / depth, 0)
    text = "the maps are disparity; give --depth-kind disparity, and a --depth-scale {} times as large"
    yield disparity, extrinsics, SCALES, text


AXES = {"opengl": np.diag([1.0, -1.0, -1.0]), "ned": np.array([[0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])}
"""From a camera's axes in another convention to ours (x right, y down, z forward): OpenGL, Blender and NeRF have y up
and z backward; TartanAir has x forward, y right, z down."""


def invert(extrinsics: np.ndarray) -> np.ndarray:
    """Rigid motions [..., 3, 4] the other way round."""
    turned = np.swapaxes(extrinsics[..., :3], -1, -2)
    return np.concatenate([turned, -turned @ extrinsics[..., 3:]], -1)


def _candidates(frames: int) -> list[int]:
    """The last frame, that of half the time, and so on to frame 1."""
    return [(frames - 1) >> k for k in range((frames - 1).bit_length())]


def _measure(
    depth: np.ndarray, extrinsics: np.ndarray, intrinsics: np.ndarray, candidates: Sequence[int]
) -> tuple[float, int, float]:
    """Error, frame and overlap of the first of the candidates that sees enough, 0 as frame where there is none."""
    most = 0.0
    for frame in candidates:
        error, overlap = _error(depth, extrinsics, intrinsics, frame)
        if overlap >= LEAST_OVERLAP and error < np.inf:
            return error, frame, overlap
        most = max(most, overlap)
    return np.inf, 0, most


def _error(depth: np.ndarray, extrinsics: np.ndarray, intrinsics: np.ndarray, frame: int) -> tuple[float, float]:
    """The median relative error (inf where too few pixels fall onto valid ones), and the overlap, all of it where frame
    0 has no depth: what is not there is not out of sight."""
    height, width = depth.shape[1:]
    v, u = (_places(size) for size in (height, width))
    first = depth[0][np.ix_(v, u)].astype(np.float64)
    valid = np.isfinite(first) & (first > 0)
    if valid.sum() < LEAST_PIXELS:
        return np.inf, 1.0
    fx, fy, cx, cy = intrinsics[0]
    x, y = np.meshgrid((u + 0.5 - cx) / fx, (v + 0.5 - cy) / fy)
    points = np.stack([x, y, np.ones_like(x)], -1)[valid] * first[valid][:, None]
    rotation = extrinsics[frame, :, :3] @ extrinsics[0, :, :3].T
    seen = points @ rotation.T + (extrinsics[frame, :, 3] - rotation @ extrinsics[0, :, 3])
    seen = seen[seen[:, 2] > 0]
    fx, fy, cx, cy = intrinsics[frame]
    column, row = (seen[:, 0] / seen[:, 2] * fx + cx - 0.5, seen[:, 1] / seen[:, 2] * fy + cy - 0.5)
    inside = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
    found, z = _looked_up(depth[frame], row[inside], column[inside]), seen[inside, 2]
    there, overlap = found > 0, float(inside.sum() / valid.sum())
    if there.sum() < LEAST_PIXELS:
        return np.inf, overlap
    return float(np.median(np.abs(z[there] - found[there]) / found[there])), overlap


def _places(size: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, GRID)).astype(np.int64))


def _looked_up(map_: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Values between four valid pixels, that of the nearest pixel elsewhere (0 or not finite where invalid)."""
    top, left = (np.minimum(p.astype(np.int64), n - 2) for p, n in zip((row, column), map_.shape, strict=True))
    down, right = row - top, column - left
    corners = [map_[top + i, left + j].astype(np.float64) for i in (0, 1) for j in (0, 1)]
    weights = [a * b for a in (1 - down, down) for b in (1 - right, right)]
    nearest = map_[np.rint(row).astype(np.int64), np.rint(column).astype(np.int64)].astype(np.float64)
    with np.errstate(invalid="ignore"):
        valid = np.all([np.isfinite(c) & (c > 0) for c in corners], 0)
        found = np.where(valid, sum(c * w for c, w in zip(corners, weights, strict=True)), nearest)
    return np.where(np.isfinite(found), found, 0)


def _change(one: np.ndarray, other: np.ndarray) -> float:
    """Median relative difference in place."""
    one, other = (m[np.ix_(*map(_places, m.shape))].astype(np.float64) for m in (one, other))
    valid = np.isfinite(one) & np.isfinite(other) & (one > 0) & (other > 0)
    return float(np.median(np.abs(one[valid] - other[valid]) / other[valid])) if valid.any() else np.inf
