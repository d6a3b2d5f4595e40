"""One raw clip becomes frames, depth and cameras of one size, in a canonical frame and scale."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from stagecoach.data.fantasy_world.cameras import canonicalise
from stagecoach.data.fantasy_world.crop import ClipCrop
from stagecoach.data.fantasy_world.depth import depth_of, measure_scene, stored_depth, valid_depth
from stagecoach.data.fantasy_world.footage import Footage
from stagecoach.data.fantasy_world.maps import Maps
from stagecoach.data.fantasy_world.options import ClipOptions
from stagecoach.data.fantasy_world.raw import RawClip, RawError
from stagecoach.data.fantasy_world.recorded import Recorded, read_recorded
from stagecoach.data.fantasy_world.timeline import Timeline, choose, starts
from stagecoach.data.fantasy_world.warp import Warp, check_warp, problem

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


def timeline(raw: RawClip, options: ClipOptions) -> Timeline:
    """What the clip is made of. Raises ``RawError``."""
    recorded = read_recorded(raw.cameras, options, raw.intrinsics)
    start = options.start if raw.start is None else raw.start
    return choose(recorded, Footage(raw.video), options, start, str(raw.cameras))


def clips_of(raw: RawClip, options: ClipOptions) -> list[RawClip]:
    """The clips of a video, one after the other, with its key and their number as their own; the video itself where it
    gives none, which ``precheck`` then says."""
    try:
        first = timeline(raw, options)
        found = starts(first, options, str(raw.cameras))
    except RawError:
        return [raw]
    return [replace(raw, key=f"{raw.key}-{number:04d}", start=start) for number, start in enumerate(found)]


def precheck(raw: RawClip, options: ClipOptions) -> None:
    """Look at what is cheap to look at, so that a bad file is found before hours of encoding. Raises ``RawError``."""
    chosen = timeline(raw, options)
    for path, what in ((raw.depth, "depth"), (None if raw.depth else raw.points, "points"), (raw.mask, "mask")):
        if path and path.suffix != ".npz":  # whose length only reading tells
            chosen.maps(Maps(path, what))


def prepare_clip(raw: RawClip, options: ClipOptions) -> Clip:
    """Read, crop, canonicalise and scale one clip (``measure_scene``), and compare its depth with its cameras
    (``warp``). Raises ``RawError``."""
    chosen = timeline(raw, options)
    outer = chosen.recorded.extrinsics[chosen.cameras]
    crop, images = None, []
    for image in chosen.footage.read(chosen.frames.tolist()):
        crop = crop or ClipCrop.of(*image.shape[:2], options.height, options.width)
        if image.shape[:2] != (crop.source_height, crop.source_width):
            raise RawError(
                f"{raw.video}: a picture of {image.shape[0]} x {image.shape[1]} found, expected "
                f"{crop.source_height:g} x {crop.source_width:g} as the first"
            )
        images.append(crop.image(image))
    pixels = source_pixels(chosen.recorded, crop, raw.cameras)[chosen.cameras]
    intrinsics = torch.from_numpy(crop.intrinsics(pixels))
    extrinsics = canonicalise(torch.from_numpy(outer))

    where = str(raw.depth or raw.points)
    depth = torch.from_numpy(_read_depth(raw, options, crop, chosen))
    scene = measure_scene(depth, intrinsics, extrinsics, options, where)
    cameras = outer, intrinsics.numpy()
    warp = check_warp(depth.numpy(), *cameras)
    wrong = problem(depth.numpy(), *cameras, warp, options.max_warp_error) if options.max_warp_error < 1 else None
    if wrong:
        raise RawError(f"{where}: {wrong}")
    extrinsics[..., 3] /= scene.scale
    stored = stored_depth(depth / scene.scale, where)
    relative, inner = extrinsics.float().numpy(), intrinsics.float().numpy()
    distorted = chosen.recorded.distorted
    return Clip(np.stack(images), stored, relative, inner, scene.scale, scene.valid, warp, distorted)


def source_pixels(recorded: Recorded, crop: ClipCrop, path: Path) -> np.ndarray:
    """Intrinsics in pixels of the source: those of smaller or larger pictures of its shape are resized, those of the
    clip's shape are of its crop."""
    source = crop.source_height, crop.source_width
    height, width = recorded.size or source
    shape = width / height
    if (height, width) == (1, 1) or abs(shape * source[0] / source[1] - 1) <= ASPECT_TOLERANCE:
        pixels = recorded.intrinsics * np.tile([source[1] / width, source[0] / height], 2)
    elif abs(shape * crop.height / crop.width - 1) <= ASPECT_TOLERANCE:
        pixels = recorded.intrinsics / crop.scale * crop.width / width + [0, 0, crop.left, crop.top]
    else:
        raise RawError(
            f"{path}: cameras of pictures of {height:g} x {width:g} found, expected the shape of the video "
            f"({source[0]:g} x {source[1]:g}) or of the clips ({crop.height} x {crop.width})"
        )
    _check_centre(pixels / np.tile(source[::-1], 2), path, crop)
    return pixels


def _check_centre(normalised: np.ndarray, path: Path, crop: ClipCrop) -> None:
    """A principal point far from the middle is one of a picture of another size."""
    off = np.abs(normalised[:, 2:] - 0.5).max(-1)
    if off.max() > CENTRE_TOLERANCE:
        x, y = normalised[int(off.argmax()), 2:] * [crop.source_width, crop.source_height]
        raise RawError(
            f"{path}: principal point {x:.5g} {y:.5g} in a video of {crop.source_width:g} x {crop.source_height:g} "
            "found, expected it near the middle; the intrinsics are of pictures of another size or unit"
        )


def _read_depth(raw: RawClip, options: ClipOptions, crop: ClipCrop, chosen: Timeline) -> np.ndarray:
    """z-depth float32 [F, H, W] in the unit of the translations, 0 where invalid."""

    def cropped(path: Path, what: Literal["depth", "points", "mask"]) -> np.ndarray:
        source = Maps(path, what)
        maps = source.read(chosen.maps(source).tolist())
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
        points, extrinsics = cropped(raw.points, "points"), chosen.recorded.extrinsics[chosen.cameras]
        depth = np.einsum("fc,fhwc->fhw", extrinsics[:, 2, :3], points) + extrinsics[:, 2, 3, None, None]
    if raw.mask:
        depth = np.where(cropped(raw.mask, "mask") != 0, depth, 0)
    return valid_depth(depth, options).astype(np.float32)
