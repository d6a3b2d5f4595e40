"""Files of cameras for sampling: read in the formats that people have, brought to a clip's frames, size and clock.

Every reader raises ``RawError`` with one sentence. Principal points: here the centre of pixel (0, 0) is (0.5, 0.5) and
the middle of a picture is (W / 2, H / 2), as in COLMAP and in RealEstate10K's divided numbers. FantasyWorld's JSON has
none; its code sets ((W - 1) / 2, (H - 1) / 2) with pixel centres at whole numbers, which is the same point.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired

import numpy as np
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes the one of typing from Python 3.12 on

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import read_json
from stagecoach.data.fantasy_world.camera_paths import PRESETS, KeyframeFile, keyframe_cameras, preset
from stagecoach.data.fantasy_world.camera_track import Cameras
from stagecoach.data.fantasy_world.colmap import read_colmap
from stagecoach.data.fantasy_world.readers import (
    CLOCKS,
    Clock,
    IntrinsicsUnit,
    check_rotation,
    clock_of,
    read_timed_cameras,
)
from stagecoach.data.files import atomic_file, write_json
from stagecoach.data.numpy_files import NpzFile, map_npy

CONVENTION = "w2c_opencv"
PUBLISHED_FOCAL = 500.0
"""Pixels of the output; FantasyWorld's default."""
SLOWEST = 10.0
"""Seconds between two cameras; more means that a clock was mistaken for another."""

Pace = Literal["time", "fit"]
"""``time``: frame k sees the camera of its presentation time k / rate. ``fit``: the path is spread over the clip."""


class CameraFrame(TypedDict):
    w2c: list[list[float]]
    fx: float
    fy: float
    cx: float
    cy: float


class CameraFile(TypedDict):
    """Our own format. ``fps`` None: one camera per frame of any clip."""

    version: Literal[1]
    width: int
    height: int
    fps: float | None
    convention: Literal["w2c_opencv"]
    frames: list[CameraFrame]


class PublishedFile(TypedDict):
    """FantasyWorld's JSON as its inference reads it: camera to world, 4 x 4 for each frame."""

    cameras_interp: list[list[list[float]]]
    focal_length: NotRequired[float]


@dataclass(frozen=True)
class Recorded:
    """Cameras as a file has them, at rising ``times`` [F]: in seconds, or in frames of the clip (``in_frames``)."""

    cameras: Cameras
    times: np.ndarray
    in_frames: bool


def load_cameras(
    source: str | Path,
    frames: int,
    height: int,
    width: int,
    rate: float,
    pace: Pace = "time",
    unit: IntrinsicsUnit = "normalised",
    clock: Clock = "auto",
) -> Cameras:
    """Cameras of a clip of ``frames`` frames of ``height`` x ``width`` at ``rate`` per second, relative to frame 0.

    Args:
        source: a preset of ``camera_paths`` as text, or a file: 19 columns as RealEstate10K has them (.txt), JSON of
            our own, of FantasyWorld or of keyframes, arrays (.npz), or a folder with COLMAP's cameras.txt and
            images.txt. A file of pictures of another shape is cropped in the middle as videos are.
        unit, clock: of a .txt. Intrinsics in pixels are taken to be those of the clip.

    Raises:
        ValueError: an unknown preset; as ``RawError``, a file that is not as it should be, or ends before the clip.
    """
    if str(source).partition(":")[0] in PRESETS and not Path(source).is_file():
        return preset(str(source), frames, height, width)
    path = Path(source)
    if path.suffix.lower() == ".json":
        content = read_json(path, "cameras")
        if isinstance(content, dict) and "keyframes" in content:
            file = _checked(content, KeyframeFile, path, "keyframes")
            return keyframe_cameras(file, frames, height, width, str(path), pace == "fit")
        recorded = cameras_of_json(content, path, height, width)
    elif path.is_dir() or path.name == "images.txt":
        cameras, numbers = read_colmap(path if path.is_dir() else path.parent)
        recorded = Recorded(cameras, numbers, True)
    elif path.suffix.lower() == ".npz":
        recorded = _from_npz(path)
    elif path.suffix.lower() == ".txt":
        recorded = _from_text(path, height, width, unit, clock)
    else:
        raise RawError(
            f"{path}: found {'no such file' if not path.exists() else f'a {path.suffix or chr(32)} file'}, expected "
            f"cameras as .txt, .json, .npz or a folder of COLMAP, or one of the paths {', '.join(PRESETS)}"
        )
    return _on_clock(recorded, frames, rate, pace, path).fitted(height, width).relative()


def _on_clock(recorded: Recorded, frames: int, rate: float, pace: Pace, path: Path) -> Cameras:
    times = recorded.times - recorded.times[0]
    if pace == "fit":
        return recorded.cameras.at(times, np.linspace(0, times[-1], frames))
    wanted = np.arange(frames) / (1 if recorded.in_frames else rate)
    step = 1 if recorded.in_frames else 1 / rate
    if times[-1] < wanted[-1] - step / 2:
        unit = "frames" if recorded.in_frames else "s"
        raise RawError(
            f"{path}: {len(times)} cameras from 0 to {times[-1]:g} {unit} found, expected them to {wanted[-1]:g} "
            f"{unit} for {frames} frames at {rate:g} per second; take fewer frames, or the pace 'fit', which spreads "
            "them over the clip"
        )
    return recorded.cameras.at(times, wanted)


def _from_text(path: Path, height: int, width: int, unit: IntrinsicsUnit, clock: Clock) -> Recorded:
    times, track = read_timed_cameras(path, unit)
    intrinsics = track.intrinsics
    if unit == "normalised":
        # Pixels are square, so the focal lengths tell the shape of the pictures that the file belongs to.
        height, width = 1, float(np.median(intrinsics[:, 1] / intrinsics[:, 0]))
        intrinsics = intrinsics * [width, height, width, height]
    clock = clock_of(times) if clock == "auto" else clock
    times = times * CLOCKS[clock]
    typical = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    if clock != "frames" and typical > SLOWEST:
        raise RawError(
            f"{path}: its first column taken as {clock} has cameras {typical:g} s apart, expected at most "
            f"{SLOWEST:g} s; say what clock it has, or write microseconds as RealEstate10K does"
        )
    return Recorded(Cameras(track.extrinsics, intrinsics, height, width), times, clock == "frames")


def cameras_of_json(content: Any, path: Path, height: int, width: int) -> Recorded:
    if isinstance(content, dict) and "cameras_interp" in content:
        published = _checked(content, PublishedFile, path, "FantasyWorld's cameras", extra="ignore")
        poses = _matrices(published["cameras_interp"], path, "cameras_interp", (4,))
        focal = published.get("focal_length", PUBLISHED_FOCAL)
        intrinsics = np.tile([focal, focal, width / 2, height / 2], (len(poses), 1))
        cameras = Cameras(np.linalg.inv(poses)[:, :3], _focal(intrinsics, path), height, width)
        return Recorded(cameras, np.arange(len(poses), dtype=np.float64), True)
    if not isinstance(content, dict) or "frames" not in content:
        found = f"keys {sorted(content)}" if isinstance(content, dict) else type(content).__name__
        raise RawError(
            f"{path}: {found:.200} found, expected 'frames' (cameras of our own), 'cameras_interp' "
            "(FantasyWorld's) or 'keyframes'"
        )
    own = _checked(content, CameraFile, path, "cameras as write_cameras leaves them")
    extrinsics = _matrices([frame["w2c"] for frame in own["frames"]], path, "frames", (3,))
    intrinsics = np.array([[frame[name] for name in ("fx", "fy", "cx", "cy")] for frame in own["frames"]], np.float64)
    times = np.arange(len(extrinsics)) / (own["fps"] or 1)
    return Recorded(
        Cameras(extrinsics, _focal(intrinsics, path), own["height"], own["width"]), times, own["fps"] is None
    )


def _from_npz(path: Path) -> Recorded:
    """``extrinsics`` [F, 3 or 4, 4] world to camera and ``intrinsics`` [F, 3, 3], [F, 4] or one of them for all, in
    pixels, as VGGT's and others' are saved (also without the s, with a leading 1); of pictures of ``height`` x
    ``width``, or else of twice the principal point."""
    arrays = load_arrays(path)
    found = {}
    for name in ("extrinsics", "intrinsics"):
        array = arrays.get(name, arrays.get(name[:-1]))
        if array is None or array.dtype.kind not in "fiu":
            raise RawError(f"{path}: arrays {sorted(arrays)} found, expected numbers named extrinsics and intrinsics")
        found[name] = array[0] if array.ndim == 4 and len(array) == 1 else array
    extrinsics = _matrices(found["extrinsics"], path, "extrinsics", (3, 4))[:, :3]
    inner = np.asarray(found["intrinsics"], np.float64)
    if inner.shape[-2:] == (3, 3):
        inner = inner[..., [0, 1, 0, 1], [0, 1, 2, 2]]
    if inner.shape not in ((4,), (len(extrinsics), 4)):
        raise RawError(
            f"{path}: intrinsics of shape {found['intrinsics'].shape} found, expected [{len(extrinsics)}, 3, 3], "
            f"[{len(extrinsics)}, 4] or one of them for all cameras"
        )
    inner = _focal(np.broadcast_to(inner, (len(extrinsics), 4)), path)
    height, width = (float(arrays.get(name, 2 * inner[0, k])) for name, k in (("height", 3), ("width", 2)))
    return Recorded(Cameras(extrinsics, inner, height, width), np.arange(len(extrinsics), dtype=np.float64), True)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz by name, or the one of a .npy. Raises ``RawError``."""
    try:
        if path.suffix.lower() == ".npy":
            return {"matrices": map_npy(path)}
        with NpzFile(path) as archive:
            return {name: archive[name] for name in archive if archive.is_numbers(name)}
    except Exception as error:  # zipfile.BadZipFile and zlib.error share no base with OSError and ValueError
        raise RawError(f"{path}: not readable as arrays ({error}), expected extrinsics and intrinsics") from error


def camera_array(values: np.ndarray, path: Path, name: str) -> np.ndarray:
    """Rigid motions [F, 3, 4] of an array [F, 3 or 4, 4], of one [3 or 4, 4], or of either with a leading 1. Raises
    ``RawError``."""
    values = values[None] if values.ndim == 2 else values[0] if values.ndim == 4 and len(values) == 1 else values
    return _matrices(values, path, name, (3, 4))[:, :3]


def _checked(content: Any, shape: Any, path: Path, what: str, extra: Literal["forbid", "ignore"] = "forbid") -> Any:
    try:
        return TypeAdapter(shape).validate_python(content, extra=extra)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise RawError(f"{path}: {at}: {first['msg']}, found {first['input']!r:.80}; expected {what}") from error


def _matrices(values: Any, path: Path, name: str, rows: tuple[int, ...]) -> np.ndarray:
    """float64 [F, rows, 4], each a rotation and a translation."""
    if not len(values):
        raise RawError(f"{path}: {name} holds no camera, expected one for each frame")
    out = []
    for i, value in enumerate(values):
        try:
            matrix = np.array(value, np.float64)
        except ValueError:
            matrix = np.empty(0)
        if matrix.shape not in [(r, 4) for r in rows] or not np.isfinite(matrix).all():
            wanted = " or ".join(f"{r} x 4" for r in rows)
            raise RawError(f"{path}: {name} {i} has shape {matrix.shape}, expected {wanted} finite numbers")
        if (matrix[3:] != [0, 0, 0, 1]).any():
            raise RawError(f"{path}: {name} {i} ends with the row {matrix[3].tolist()}, expected 0 0 0 1")
        check_rotation(matrix, f"{path}: {name} {i}", "the matrix")
        out.append(matrix)
    if len({m.shape for m in out}) > 1:
        raise RawError(f"{path}: {name} mixes 3 x 4 and 4 x 4, expected one of them")
    return np.stack(out)


def _focal(intrinsics: np.ndarray, path: Path) -> np.ndarray:
    wrong = ~(np.isfinite(intrinsics).all(-1) & (intrinsics[:, :2] > 1).all(-1))
    if wrong.any():
        i = int(wrong.argmax())
        raise RawError(f"{path}: intrinsics {i} are {intrinsics[i].tolist()}, expected fx fy cx cy in pixels")
    return intrinsics


def write_cameras(path: Path, cameras: Cameras, fps: float | None) -> None:
    """Write our own JSON: {version, width, height, fps, convention, frames: [{w2c, fx, fy, cx, cy}]}."""
    frames = [
        {"w2c": outer.tolist(), **dict(zip(("fx", "fy", "cx", "cy"), inner.tolist(), strict=True))}
        for outer, inner in zip(cameras.extrinsics, cameras.intrinsics, strict=True)
    ]
    size = {"width": int(cameras.width), "height": int(cameras.height)}
    write_json(path, {"version": 1, **size, "fps": fps, "convention": CONVENTION, "frames": frames})


def write_realestate10k(path: Path, cameras: Cameras, fps: float) -> None:
    """Write RealEstate10K's text: a line that other readers skip as the video's address, then for each frame its time
    in microseconds, fx fy cx cy divided by the size, two zeros and w2c row by row."""
    size = np.tile([cameras.width, cameras.height], 2)
    with atomic_file(path, "w") as file:
        file.write(f"stagecoach://cameras?width={cameras.width:g}&height={cameras.height:g}&fps={fps:g}\n")
        for k, (outer, inner) in enumerate(zip(cameras.extrinsics, cameras.intrinsics / size, strict=True)):
            numbers = [*inner, 0, 0, *outer.reshape(-1)]
            file.write(" ".join([str(round(k * 1e6 / fps)), *(f"{x:.12g}" for x in numbers)]) + "\n")
