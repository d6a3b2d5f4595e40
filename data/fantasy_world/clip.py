"""One raw clip becomes frames, depth and cameras of one size, in a canonical frame and scale."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from stagecoach.data.building.options import Argument
from stagecoach.data.fantasy_world.cameras import canonicalise, unproject
from stagecoach.data.fantasy_world.raw import RawClip, RawError
from stagecoach.data.fantasy_world.readers import (
    IntrinsicsUnit,
    count_maps,
    declared_frames,
    read_cameras,
    read_frames,
    read_maps,
)
from stagecoach.data.fantasy_world.schema import LATENT_STRIDE, latent_frames
from stagecoach.data.pictures import CoverCrop, check_sides

ASPECT_TOLERANCE = 0.02
FLOAT16_MAX = float(np.finfo(np.float16).max)
PATCH_STRIDE = 2 * LATENT_STRIDE
"""Pixels per token of the Wan transformer, which takes 2 x 2 latents as one."""


@dataclass(frozen=True)
class ClipOptions:
    """Size of the clips to be made and how the raw files are to be read. Raises ``ValueError`` for a size that the
    backbone cannot take."""

    frames: Annotated[int, Argument("frames per clip, 4k + 1")] = 81
    height: Annotated[int, Argument("pixels")] = 336
    width: Annotated[int, Argument("pixels")] = 592
    intrinsics: Annotated[
        IntrinsicsUnit, Argument("unit in the camera files: divided by width and height (default), or pixels")
    ] = "normalised"
    depth_scale: Annotated[
        float, Argument("what depth files are multiplied by to be in the unit of the camera translations", metavar="X")
    ] = 1.0

    def __post_init__(self) -> None:
        latent_frames(self.frames)
        check_sides(self.height, self.width, PATCH_STRIDE, "VAE stride 8, patch 2")
        if not self.depth_scale > 0:
            raise ValueError(f"depth scale {self.depth_scale} found, expected a number above 0")


@dataclass(frozen=True)
class Clip:
    """``frames`` uint8 [F, H, W, 3]; ``depth`` float16 [F, H, W], 0 where invalid; ``extrinsics`` float32 [F, 3, 4];
    ``intrinsics`` float32 [F, 4] in pixels; ``scale`` is what depth and translations were divided by."""

    frames: np.ndarray
    depth: np.ndarray
    extrinsics: np.ndarray
    intrinsics: np.ndarray
    scale: float
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
    """Read, crop, canonicalise and scale one clip.

    The scale is the mean distance of the valid world points from camera 0 (FantasyWorld, data section: canonical frame
    and scene scale). Raises ``RawError``.
    """
    track = read_cameras(raw.cameras, options.frames, options.intrinsics)
    crop, images = None, []
    for image in read_frames(raw.video, options.frames):
        crop = crop or ClipCrop.of(*image.shape[:2], options.height, options.width)
        images.append(crop.image(image))
    intrinsics = track.intrinsics
    if options.intrinsics == "normalised":
        intrinsics = intrinsics * np.tile([crop.source_width, crop.source_height], 2)
    intrinsics = torch.from_numpy(crop.intrinsics(intrinsics))
    extrinsics = canonicalise(torch.from_numpy(track.extrinsics))

    depth = torch.from_numpy(_read_depth(raw, options, crop, track.extrinsics))
    scale = _scene_scale(depth, intrinsics, extrinsics, raw)
    extrinsics[..., 3] /= scale
    depth = depth / scale
    stored = torch.where(depth > FLOAT16_MAX, 0, depth).half().numpy()
    return Clip(
        np.stack(images), stored, extrinsics.float().numpy(), intrinsics.float().numpy(), scale, track.distorted
    )


def _scene_scale(depth: torch.Tensor, intrinsics: torch.Tensor, extrinsics: torch.Tensor, raw: RawClip) -> float:
    """Frame by frame, since the points of a whole clip in double precision are half a gigabyte."""
    total, count = 0.0, 0
    for map_, inner, outer in zip(depth, intrinsics, extrinsics, strict=True):
        distances = unproject(map_.double(), inner, outer).norm(dim=-1)[map_ > 0]
        total, count = total + float(distances.sum()), count + distances.numel()
    if not count:
        raise RawError(
            f"{raw.depth or raw.points}: no valid depth found (finite and above 0) inside the crop, expected some"
        )
    return total / count


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
        depth = cropped(raw.depth, "depth").astype(np.float32) * options.depth_scale
    else:
        points = cropped(raw.points, "points", channels=3)
        depth = np.einsum("fc,fhwc->fhw", extrinsics[:, 2, :3], points) + extrinsics[:, 2, 3, None, None]
    valid = np.isfinite(depth) & (depth > 0)
    if raw.mask:
        valid &= cropped(raw.mask, "mask") != 0
    return np.where(valid, depth, 0).astype(np.float32)
