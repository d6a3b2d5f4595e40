"""Camera paths without a file: presets with parameters, and keyframes.

Lengths are in units of the scene: the mean distance of its visible points from camera 0 is 1, as in the shards. Angles
are in degrees. Axes are those of ``cameras`` (x right, y down, z forward); every path starts at the identity.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Literal, NotRequired

import numpy as np
from typing_extensions import TypedDict  # pydantic takes the one of typing from Python 3.12 on

from stagecoach.data.building.jobs import RawError
from stagecoach.data.fantasy_world.camera_track import Cameras, world_to_camera

DEFAULT_FOV = float(np.degrees(2 * np.arctan(336 / 2 / 500)))
"""Vertical; the focal length of 500 pixels at 336 x 592 that the published inference takes where none is given."""

Poses = tuple[np.ndarray, np.ndarray]
"""Axes of the cameras in the world as columns [F, 3, 3], and positions [F, 3]."""


def push(u: np.ndarray, distance: float = 0.5) -> Poses:
    """Forward by ``distance``; below 0 backward."""
    return _moved(u, [0, 0, distance])


def truck(u: np.ndarray, distance: float = 0.3) -> Poses:
    """To the right by ``distance``; below 0 to the left."""
    return _moved(u, [distance, 0, 0])


def pedestal(u: np.ndarray, distance: float = 0.2) -> Poses:
    """Up by ``distance``; below 0 down."""
    return _moved(u, [0, -distance, 0])


def pan(u: np.ndarray, degrees: float = 30.0) -> Poses:
    """Turned to the right on the spot; below 0 to the left."""
    return turns(degrees * u, 0 * u, 0 * u), np.zeros((len(u), 3))


def tilt(u: np.ndarray, degrees: float = 15.0) -> Poses:
    """Turned upwards on the spot; below 0 downwards."""
    return turns(0 * u, degrees * u, 0 * u), np.zeros((len(u), 3))


def roll(u: np.ndarray, degrees: float = 30.0) -> Poses:
    """Turned clockwise about the line of sight; below 0 the other way."""
    return turns(0 * u, 0 * u, degrees * u), np.zeros((len(u), 3))


def orbit(u: np.ndarray, degrees: float = 40.0, depth: float = 1.0, elevation: float = 0.0) -> Poses:
    """Around the point ``depth`` ahead of camera 0, always looking at it from the same distance: to the right by
    ``degrees``, up by ``elevation`` (below 90) at the end."""
    if depth <= 0 or abs(elevation) >= 90:
        raise ValueError(
            f"orbit: depth {depth:g} and elevation {elevation:g} found, expected a depth above 0 and an elevation "
            "between -90 and 90"
        )
    around, above = np.radians(degrees) * u, np.radians(elevation) * u
    away = np.stack([np.sin(around) * np.cos(above), -np.sin(above), -np.cos(around) * np.cos(above)], -1)
    target = np.array([0, 0, depth])
    return looking_at(-away), target + depth * away


def spiral(
    u: np.ndarray, radius: float = 0.15, rounds: float = 2.0, distance: float = 0.0, depth: float = 1.0
) -> Poses:
    """In growing circles up to ``radius``, ``rounds`` of them, forward by ``distance``, looking at the point ``depth``
    ahead of camera 0."""
    if depth <= distance:
        raise ValueError(f"spiral: distance {distance:g} found, expected less than the depth {depth:g} of its target")
    angle = 2 * np.pi * rounds * u
    centres = np.stack([radius * u * np.cos(angle), radius * u * np.sin(angle), distance * u], -1)
    return looking_at(np.array([0, 0, depth]) - centres), centres


def still(u: np.ndarray) -> Poses:
    """No motion."""
    return _moved(u, [0, 0, 0])


PRESETS: dict[str, Callable[..., Poses]] = {
    f.__name__: f for f in (push, truck, pedestal, pan, tilt, roll, orbit, spiral, still)
}


def preset(text: str, frames: int, height: int, width: int) -> Cameras:
    """The cameras of ``NAME`` or ``NAME:PARAMETER=NUMBER,...``, as ``orbit:degrees=60,depth=1.2``, evenly paced.

    Besides its own parameters each preset takes ``fov``, the vertical field of view. Raises ``ValueError`` for an
    unknown name or parameter, saying which there are.
    """
    name, _, given = text.partition(":")
    if name not in PRESETS:
        raise ValueError(f"camera path {name!r} found, expected one of {', '.join(PRESETS)}")
    known = [*list(inspect.signature(PRESETS[name]).parameters)[1:], "fov"]
    values = {}
    for word in given.split(",") if given else ():
        key, _, number = word.partition("=")
        try:
            values[key.strip()] = float(number)
        except ValueError:
            values[key.strip()] = np.nan
        if key.strip() not in known or not np.isfinite(values[key.strip()]):
            raise ValueError(
                f"camera path {text!r}: {word!r} found, expected PARAMETER=NUMBER with one of {', '.join(known)}"
            )
    fov = values.pop("fov", DEFAULT_FOV)
    rotations, centres = PRESETS[name](np.arange(frames) / max(frames - 1, 1), **values)
    intrinsics = np.tile(intrinsics_of(fov, height, width, f"camera path {text!r}"), (frames, 1))
    return Cameras(world_to_camera(rotations, centres), intrinsics, height, width)


def intrinsics_of(fov: float, height: int, width: int, where: str) -> np.ndarray:
    """fx fy cx cy of square pixels with a vertical field of view in degrees."""
    if not 0 < fov < 180:
        raise ValueError(f"{where}: fov {fov:g} found, expected degrees between 0 and 180")
    focal = height / 2 / np.tan(np.radians(fov) / 2)
    return np.array([focal, focal, width / 2, height / 2])


def turns(yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Axes [F, 3, 3] of cameras turned to the right by ``yaw``, then upwards by ``pitch``, then clockwise by ``roll``,
    each [F] in degrees."""
    (cy, cp, cr), (sy, sp, sr) = (f(np.radians([yaw, pitch, roll])) for f in (np.cos, np.sin))
    one, zero = np.ones_like(cy), np.zeros_like(cy)

    def rows(*values: np.ndarray) -> np.ndarray:
        return np.stack(values, -1).reshape(-1, 3, 3)

    about_y = rows(cy, zero, sy, zero, one, zero, -sy, zero, cy)
    about_x = rows(one, zero, zero, zero, cp, -sp, zero, sp, cp)
    about_z = rows(cr, -sr, zero, sr, cr, zero, zero, zero, one)
    return about_y @ about_x @ about_z


def looking_at(forward: np.ndarray) -> np.ndarray:
    """Axes [F, 3, 3] of upright cameras that look along ``forward`` [F, 3]. Raises ``ValueError`` for the vertical and
    for a direction of no length."""
    length = np.linalg.norm(forward, axis=-1, keepdims=True)
    z = forward / np.maximum(length, 1e-12)
    x = np.cross([0.0, 1.0, 0.0], z)
    side = np.linalg.norm(x, axis=-1, keepdims=True)
    if (side < 1e-6).any():
        bad = forward[int(side[:, 0].argmin())]
        raise ValueError(
            f"a camera that looks along {bad.tolist()} has no upright position; expected another point to look at, or "
            "yaw, pitch and roll"
        )
    x = x / side
    return np.stack([x, np.cross(z, x), z], -1)


def _moved(u: np.ndarray, by: Sequence[float]) -> Poses:
    return np.tile(np.eye(3), (len(u), 1, 1)), u[:, None] * np.array(by, np.float64)


class Keyframe(TypedDict):
    """A camera at a frame: where it is, and what it looks at or how it is turned (degrees, each 0 where not given).

    Between two keyframes a camera turns the shorter way. ``fov`` holds until another is given.
    """

    frame: int
    position: tuple[float, float, float]
    look_at: NotRequired[tuple[float, float, float]]
    yaw: NotRequired[float]
    pitch: NotRequired[float]
    roll: NotRequired[float]
    fov: NotRequired[float]


class KeyframeFile(TypedDict):
    """``smooth``: positions along a Catmull-Rom spline; ``linear``: straight between keyframes."""

    keyframes: list[Keyframe]
    interpolation: NotRequired[Literal["smooth", "linear"]]


def keyframe_cameras(
    file: KeyframeFile, frames: int, height: int, width: int, where: str, fit: bool = False
) -> Cameras:
    """The cameras of ``frames`` frames through keyframes; after the last they stand still. ``fit``: the last keyframe
    becomes the last frame. Raises ``RawError`` that begins with ``where``."""
    keys = file["keyframes"]
    numbers = np.array([key["frame"] for key in keys], np.float64)
    wrong = next((i for i, n in enumerate(numbers) if n < (0 if i == 0 else numbers[i - 1] + 1)), None)
    if wrong is not None or not keys or numbers[0] != 0:
        found = f"keyframe {wrong or 0} at frame {numbers[wrong or 0]:g}" if keys else "no keyframe"
        raise RawError(f"{where}: {found} found, expected keyframes from frame 0 on, each later than the one before")
    if fit:
        numbers = numbers * ((frames - 1) / max(numbers[-1], 1))
    elif numbers[-1] >= frames:
        raise RawError(
            f"{where}: a keyframe at frame {numbers[-1]:g} found, expected the last at {frames - 1} or before in a "
            f"clip of {frames} frames; take more frames, or the pace 'fit'"
        )
    axes, intrinsics, fov = [], [], DEFAULT_FOV
    for i, key in enumerate(keys):
        if "look_at" in key and ("yaw" in key or "pitch" in key):
            raise RawError(f"{where}: keyframe {i} has look_at and yaw or pitch, expected one or the other")
        spin = turns(*(np.array([key.get(name, 0.0)]) for name in ("yaw", "pitch", "roll")))
        try:
            if "look_at" in key:
                spin = looking_at(np.array([key["look_at"]]) - np.array([key["position"]])) @ spin
            fov = key.get("fov", fov)
            intrinsics.append(intrinsics_of(fov, height, width, "camera"))
        except ValueError as error:
            raise RawError(f"{where}: keyframe {i}: {error}") from error
        axes.append(spin[0])
    positions = np.array([key["position"] for key in keys], np.float64)
    cameras = Cameras(world_to_camera(np.stack(axes), positions), np.stack(intrinsics), height, width)
    smooth = file.get("interpolation", "smooth") == "smooth"
    return cameras.at(numbers, np.arange(frames, dtype=np.float64), smooth).relative()
