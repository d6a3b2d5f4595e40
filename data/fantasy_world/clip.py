"""One raw clip becomes frames, depth and cameras of one size, in a canonical frame and scale."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from stagecoach.data.fantasy_world.cameras import canonicalise
from stagecoach.data.fantasy_world.depth import depth_of, measure_scene, stored_depth, valid_depth
from stagecoach.data.fantasy_world.options import ClipOptions
from stagecoach.data.fantasy_world.raw import RawClip, RawError
from stagecoach.data.fantasy_world.readers import (
    CameraTrack,
    count_maps,
    declared_frames,
    read_cameras,
    read_frames,
    read_maps,
)
from stagecoach.data.fantasy_world.warp import AXES, Warp, check_warp, invert, problem
from stagecoach.data.pictures import CoverCrop

ASPECT_TOLERANCE = 0.02
CENTRE_TOLERANCE = 0.25
"""How far a principal point may lie from the middle of the picture, in parts of its size."""


@dataclass(frozen=True)
class Clip:
    """``frames`` uint8 [F, H, W, 3]; ``depth`` float16 [F, H, W], 0 where invalid; ``extrinsics`` float32 [F, 3, 4];
    ``intrinsics`` float32 [F, 4] in pixels; ``scale`` is what depth and translations were divided by; ``valid`` is the
    part of the pixels with a depth; ``warp`` tells whether depth and cameras agree."""

    frames: np.ndarray
    depth: np.ndarray
    extrinsics: np.ndarray
    intrinsics: np.ndarray
    scale: float
    valid: float
    warp: Warp
    distorted: bool


@dataclass(frozen=True)
class ClipCrop(CoverCrop):
    """The crop of a clip, with its maps and cameras."""

    def maps(self, maps: np.ndarray) -> np.ndarray:
        """[F, a, b, ...] of the same view in any resolution -> [F, H, W, ...], the nearest value at pixel centres:
        a mean across the edge of an object would be a surface that is not there."""
        rows = self._nearest(self.top, self.height, self.source_height, maps.shape[1])
        columns = self._nearest(self.left, self.width, self.source_width, maps.shape[2])
        return maps[:, rows[:, None], columns]

    def _nearest(self, start: float, size: int, source: int, available: int) -> np.ndarray:
        centres = start + (np.arange(size) + 0.5) / self.scale
        return np.clip(np.floor(centres / source * available).astype(np.int64), 0, available - 1)

    def intrinsics(self, intrinsics: np.ndarray) -> np.ndarray:
        """[..., 4] in source pixels -> clip pixels. With pixel centres at half numbers a resize is a plain factor; the
        index of a pixel goes from u to (u + 0.5) scale - 0.5 - left scale."""
        return (intrinsics - np.array([0, 0, self.left, self.top])) * self.scale


def precheck(raw: RawClip, options: ClipOptions) -> None:
    """Look at what is cheap to look at, so that a bad file is found before hours of encoding. Raises ``RawError``."""
    read_cameras(raw.cameras, options.frames, options.intrinsics)
    count_maps(*((raw.depth, options.frames, "depth") if raw.depth else (raw.points, options.frames, "points")))
    if raw.mask:
        count_maps(raw.mask, options.frames, "mask")
    found = declared_frames(raw.video)
    if found is not None and found < options.frames:
        raise RawError(
            f"{raw.video}: {found} frames found, expected at least {options.frames}; take a longer video or "
            f"fewer frames per clip"
        )


def prepare_clip(raw: RawClip, options: ClipOptions) -> Clip:
    """Read, crop, canonicalise and scale one clip (``measure_scene``), and compare its depth with its cameras
    (``warp``). Raises ``RawError``."""
    track = _in_our_convention(read_cameras(raw.cameras, options.frames, options.intrinsics), options)
    crop, images = None, []
    for image in read_frames(raw.video, options.frames):
        crop = crop or ClipCrop.of(*image.shape[:2], options.height, options.width)
        images.append(crop.image(image))
    size = np.tile([crop.source_width, crop.source_height], 2)
    pixels = track.intrinsics * size if options.intrinsics == "normalised" else track.intrinsics
    _check_centre(pixels / size, raw.cameras, crop)
    intrinsics = torch.from_numpy(crop.intrinsics(pixels))
    extrinsics = canonicalise(torch.from_numpy(track.extrinsics))

    where = str(raw.depth or raw.points)
    depth = torch.from_numpy(_read_depth(raw, options, crop, track.extrinsics))
    scene = measure_scene(depth, intrinsics, extrinsics, options, where)
    cameras = track.extrinsics, intrinsics.numpy()
    warp = check_warp(depth.numpy(), *cameras)
    wrong = problem(depth.numpy(), *cameras, warp, options.max_warp_error) if options.max_warp_error < 1 else None
    if wrong:
        raise RawError(f"{where}: {wrong}")
    extrinsics[..., 3] /= scene.scale
    stored = stored_depth(depth / scene.scale, where)
    outer, inner = extrinsics.float().numpy(), intrinsics.float().numpy()
    return Clip(np.stack(images), stored, outer, inner, scene.scale, scene.valid, warp, track.distorted)


def _in_our_convention(track: CameraTrack, options: ClipOptions) -> CameraTrack:
    """World to camera, x right, y down, z forward."""
    extrinsics = invert(track.extrinsics) if options.camera_convention == "c2w" else track.extrinsics
    if options.camera_axes != "opencv":
        extrinsics = AXES[options.camera_axes] @ extrinsics
    return replace(track, extrinsics=extrinsics)


def _check_centre(normalised: np.ndarray, path: Path, crop: ClipCrop) -> None:
    """A principal point far from the middle is one of a picture of another size."""
    off = np.abs(normalised[:, 2:] - 0.5).max(-1)
    if off.max() > CENTRE_TOLERANCE:
        x, y = normalised[int(off.argmax()), 2:] * [crop.source_width, crop.source_height]
        raise RawError(
            f"{path}: principal point {x:.5g} {y:.5g} in a video of {crop.source_width:g} x {crop.source_height:g} "
            "found, expected it near the middle; the intrinsics are of pictures of another size or unit"
        )


def _read_depth(raw: RawClip, options: ClipOptions, crop: ClipCrop, extrinsics: np.ndarray) -> np.ndarray:
    """z-depth float32 [F, H, W] in the unit of the translations, 0 where invalid."""

    def cropped(path: Path, what: str, channels: int = 0) -> np.ndarray:
        maps = read_maps(path, options.frames, what, channels)
        found, expected = maps.shape[2] / maps.shape[1], crop.source_width / crop.source_height
        if abs(found / expected - 1) > ASPECT_TOLERANCE:
            raise RawError(
                f"{path}: maps of {maps.shape[1]} x {maps.shape[2]} found, expected the aspect ratio of the "
                f"video ({crop.source_height} x {crop.source_width})"
            )
        return crop.maps(maps)

    if raw.depth:
        depth = depth_of(cropped(raw.depth, "depth"), options)
    else:
        points = cropped(raw.points, "points", channels=3)
        depth = np.einsum("fc,fhwc->fhw", extrinsics[:, 2, :3], points) + extrinsics[:, 2, 3, None, None]
    if raw.mask:
        depth = np.where(cropped(raw.mask, "mask") != 0, depth, 0)
    return valid_depth(depth, options).astype(np.float32)
