"""A clip of which depth or cameras are given gets the other one, in the unit of what is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stagecoach.data.annotation.cameras import CameraEstimate, CameraEstimator
from stagecoach.data.annotation.depth import Agreed, DepthEstimator, agree
from stagecoach.data.building.jobs import RawError
from stagecoach.data.fantasy_world.clip import ASPECT_TOLERANCE, source_pixels
from stagecoach.data.fantasy_world.crop import ClipCrop
from stagecoach.data.fantasy_world.depth import depth_of, valid_depth
from stagecoach.data.fantasy_world.footage import Footage
from stagecoach.data.fantasy_world.maps import Maps
from stagecoach.data.fantasy_world.options import ClipOptions
from stagecoach.data.fantasy_world.recorded import read_recorded
from stagecoach.data.fantasy_world.timeline import paired


@dataclass(frozen=True)
class Completed:
    """``numbers``: the name of each frame, as the builder pairs them. ``depth`` float32 [T, H, W], 0 where invalid;
    ``intrinsics`` [T, 4] divided by width and height; ``agreed`` has the extrinsics and how well both agree."""

    numbers: list[int]
    depth: np.ndarray
    intrinsics: np.ndarray
    agreed: Agreed


def depth_for_cameras(
    video: Path,
    cameras: Path,
    intrinsics: tuple[float, ...] | Path | None,
    options: ClipOptions,
    network: DepthEstimator,
    points: CameraEstimator,
    errors: tuple[float, float],
) -> Completed:
    """Depth of the frames that have a camera, in the unit of the translations: the network's, fitted to points that the
    given cameras triangulate. ``errors``: as of ``agree``. Raises ``RawError``."""
    recorded, footage = read_recorded(cameras, options, intrinsics), Footage(video)
    places = paired(recorded, footage, options, str(cameras))[1]
    if len(places) < 2 or places[0] < 0 or places[-1] >= footage.count or (np.diff(places) <= 0).any():
        raise RawError(
            f"{cameras}: {len(places)} cameras for the {footage.count} frames of {video.name} found, expected two or "
            "more, each of another frame of it"
        )
    frames = list(footage.read(places.tolist()))
    height, width = frames[0].shape[:2]
    pixels = source_pixels(recorded, ClipCrop.of(height, width, options.height, options.width), cameras)
    where = f"{video} with {cameras.name}"
    known = points.triangulate(frames, recorded.extrinsics, pixels, where)
    found = agree(network.estimate(frames), network.metric, known, where, *errors)
    given = recorded.numbers
    if footage.files is not None:
        names = [list(footage.files)[place] for place in places]
    elif given is not None and (given == given.round()).all():
        names = [int(number) for number in given]
    else:
        names = list(range(len(places)))
    return Completed(names, found.depth / np.float32(found.unit), pixels / ([width, height] * 2), found)


def cameras_for_depth(
    video: Path, depth: Path, options: ClipOptions, estimator: CameraEstimator, errors: tuple[float, float]
) -> Completed:
    """Cameras of all frames, in the unit of the given depth. ``errors``: as of ``agree``. Raises ``RawError``."""
    footage, maps = Footage(video), Maps(depth, "depth")
    if maps.count != footage.count:
        raise RawError(
            f"{depth}: depth of {maps.count} frames found, expected one for each of the {footage.count} frames of "
            f"{video.name}, to find their cameras by"
        )
    every = range(footage.count)
    frames, values = list(footage.read(every)), valid_depth(depth_of(maps.read(every), options), options)
    size = np.array(frames[0].shape[1::-1], np.float64)
    ratio = np.array(values.shape[:0:-1]) / size
    if abs(ratio[0] / ratio[1] - 1) > ASPECT_TOLERANCE:
        raise RawError(
            f"{depth}: maps of {values.shape[1]} x {values.shape[2]} found, expected the aspect ratio of the video "
            f"({size[1]:g} x {size[0]:g})"
        )
    where = f"{video} with {depth.name}"
    seen = estimator.estimate(frames, where)
    points = [np.concatenate([one[:, :2] * ratio, one[:, 2:]], 1) for one in seen.points]
    there = CameraEstimate(seen.extrinsics, seen.intrinsics * np.tile(ratio, 2), points)
    names = list(footage.files) if footage.files is not None else list(every)
    return Completed(names, values, seen.intrinsics / np.tile(size, 2), agree(values, True, there, where, *errors))
