"""Cameras of raw clips, in the files that reconstructions and data sets have them in, with what those say of time."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import read_json, read_text
from stagecoach.data.fantasy_world.camera_files import camera_array, cameras_of_json, load_arrays
from stagecoach.data.fantasy_world.cameras import decode_pose
from stagecoach.data.fantasy_world.colmap import is_colmap, read_colmap
from stagecoach.data.fantasy_world.maps import numbered_files
from stagecoach.data.fantasy_world.options import ClipOptions
from stagecoach.data.fantasy_world.readers import MAX_NORMALISED_FOCAL, Clock, camera_rows, check_rotation, track_of
from stagecoach.data.fantasy_world.warp import AXES, invert

TO_CAMERA = "extrinsics", "extrinsic", "w2c", "world_to_camera"
TO_WORLD = "poses", "pose", "c2w", "cam2world", "camera_poses", "camera_to_world"
"""Names of arrays of matrices, by direction; CUT3R writes ``pose``, VGGT ``extrinsic``."""
INTRINSICS = "intrinsics", "intrinsic", "K"
POSE_ENCODING = "pose_enc", "pose_encoding"
"""VGGT's nine numbers."""
ONE_EACH = ".txt", ".npy", ".npz"
TEXTS = ".txt", ".csv", ".tsv", ".cam"


@dataclass(frozen=True)
class Recorded:
    """Cameras in the order of time. ``extrinsics`` float64 [N, 3, 4] world to camera, x right, y down, z forward;
    ``intrinsics`` float64 [N, 4], of a picture of ``size`` (height, width), which is (1, 1) for divided ones, and None
    for that of the video; ``numbers`` float64 [N], rising: what the file says of time, by ``clock``; None where it says
    nothing but the order; ``distorted``: whether a lens distortion is given, and left out."""

    extrinsics: np.ndarray
    intrinsics: np.ndarray
    size: tuple[float, float] | None
    numbers: np.ndarray | None
    clock: Clock
    distorted: bool = False

    def __len__(self) -> int:
        return len(self.extrinsics)


def read_recorded(path: Path, options: ClipOptions, given: tuple[float, ...] | Path | None = None) -> Recorded:
    """All cameras of a file or folder: text with a line for each (``camera_rows``), our own JSON or FantasyWorld's,
    arrays (.npz, .npy), a folder of COLMAP, or one with a numbered file for each.

    ``given``: intrinsics for files without, fx fy cx cy or a file with a 3 x 3 or 4 x 4 matrix. COLMAP and the JSON
    files have a convention of their own, others that of the options but for arrays whose name tells that they are
    camera to world. Raises ``RawError``.
    """
    if is_colmap(path):
        cameras, numbers = read_colmap(path if path.is_dir() else path.parent)
        size = cameras.height, cameras.width
        return Recorded(cameras.extrinsics, cameras.intrinsics, size, numbers, "frames")
    if path.suffix.lower() == ".json":
        found = cameras_of_json(read_json(path, "cameras"), path, options.height, options.width)
        size, clock = (found.cameras.height, found.cameras.width), "frames" if found.in_frames else "seconds"
        return Recorded(found.cameras.extrinsics, found.cameras.intrinsics, size, found.times, clock)
    if path.is_dir():
        recorded = _in_order(_folder(path, options), path)
    elif path.suffix.lower() in (".npz", ".npy"):
        recorded = _arrays(path, options)
    elif path.suffix.lower() in TEXTS or not path.suffix:
        recorded = _in_order(_text(path, options), path)
    else:
        raise RawError(
            f"{path}: found a {path.suffix} file, expected cameras as .txt, .csv, .json, .npz, .npy, a folder of "
            "COLMAP or one with a file for each"
        )
    return _with_intrinsics(recorded, given, path, options)


def _text(path: Path, options: ClipOptions) -> Recorded:
    rows = [values for _, values in camera_rows(path, options.intrinsics)]
    if not rows:
        raise RawError(f"{path}: 0 cameras found, expected a line for each")
    track, numbers = track_of(rows), np.array(rows)[:, 0]
    size = (1.0, 1.0) if options.intrinsics == "normalised" else None
    timed = np.isfinite(numbers).all() and (numbers != numbers[0]).any()
    return Recorded(
        _ours(track.extrinsics, options.camera_convention == "c2w", options),
        track.intrinsics,
        size,
        numbers if timed else None,
        options.camera_clock,
        track.distorted,
    )


def _arrays(path: Path, options: ClipOptions) -> Recorded:
    """One file of all cameras."""
    extrinsics, intrinsics, size = _matrices(load_arrays(path), path, options)
    return Recorded(extrinsics, intrinsics, size, None, "frames")


def _folder(path: Path, options: ClipOptions) -> Recorded:
    files = numbered_files(path, ONE_EACH, "one file for each camera")
    if not files:
        raise RawError(
            f"{path}: no cameras found, expected COLMAP's cameras and images or a numbered .txt, .npy or .npz for each"
        )
    found = [
        _matrices({"matrix": _numbers(file)} if file.suffix == ".txt" else load_arrays(file), file, options)
        for file in files.values()
    ]
    outer, inner = (np.concatenate([one[k] for one in found]) for k in (0, 1))
    if len(outer) != len(files):
        raise RawError(f"{path}: {len(outer)} cameras in {len(files)} files found, expected one in each")
    return Recorded(outer, inner, found[0][2], np.array(list(files), np.float64), options.camera_clock)


def _matrices(
    arrays: Mapping[str, np.ndarray], path: Path, options: ClipOptions
) -> tuple[np.ndarray, np.ndarray, tuple[float, float] | None]:
    """Extrinsics [N, 3, 4] in our convention, intrinsics [N, 4] (NaN where there are none) and their pictures' size."""
    names = {name.lower(): array for name, array in arrays.items()}
    encoded = next((names[name] for name in POSE_ENCODING if name in names), None)
    if encoded is not None and not any(name in names for name in (*TO_CAMERA, *TO_WORLD)):
        pose = torch.from_numpy(np.asarray(encoded, np.float64).reshape(-1, 9))
        outer, inner = (part.numpy() for part in decode_pose(pose, 1, 1))
        return outer, inner, (1.0, 1.0)
    known = next((name for name in (*TO_CAMERA, *TO_WORLD) if name in names), None)
    if known is None and len(names) == 1:
        known = next(iter(names))
    if known is None:
        raise RawError(
            f"{path}: arrays {sorted(arrays)} found, expected matrices named {' or '.join(TO_CAMERA + TO_WORLD)}"
        )
    matrices = camera_array(names[known], path, known)
    extrinsics = _ours(matrices, known in TO_WORLD or options.camera_convention == "c2w", options)
    inner = next((names[name] for name in map(str.lower, INTRINSICS) if name in names), None)
    if inner is None:
        return extrinsics, np.full((len(extrinsics), 4), np.nan), None
    inner = _inner(inner, path)
    if inner.ndim == 2 and len(inner) not in (1, len(extrinsics)):
        raise RawError(f"{path}: {len(inner)} intrinsics for {len(extrinsics)} cameras found, expected one for each")
    inner = np.broadcast_to(inner, (len(extrinsics), 4))
    if inner[:, :2].max() <= MAX_NORMALISED_FOCAL:
        return extrinsics, inner, (1.0, 1.0)
    height, width = (float(names.get(name, 2 * inner[0, k])) for name, k in (("height", 3), ("width", 2)))
    return extrinsics, inner, (height, width)


def _ours(matrices: np.ndarray, to_world: bool, options: ClipOptions) -> np.ndarray:
    extrinsics = invert(matrices) if to_world else matrices
    return extrinsics if options.camera_axes == "opencv" else AXES[options.camera_axes] @ extrinsics


def _inner(values: np.ndarray, path: Path) -> np.ndarray:
    """fx fy cx cy [..., 4] of matrices [..., 3 or 4, 3 or 4] or of themselves; a leading 1 is left out."""
    values = np.asarray(values, np.float64)
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.shape[-2:] in ((3, 3), (4, 4), (3, 4)):
        values = values[..., [0, 1, 0, 1], [0, 1, 2, 2]]
    if values.shape[-1:] != (4,) or values.ndim > 2 or not np.isfinite(values).all() or (values[..., :2] <= 0).any():
        raise RawError(f"{path}: intrinsics of shape {values.shape} found, expected fx fy cx cy or 3 x 3 matrices")
    return values


def _with_intrinsics(
    recorded: Recorded, given: tuple[float, ...] | Path | None, path: Path, options: ClipOptions
) -> Recorded:
    if given is None:
        if np.isfinite(recorded.intrinsics).all():
            return recorded
        raise RawError(
            f"{path}: no intrinsics found, expected them there or as 'intrinsics' of the entry (fx fy cx cy)"
        )
    values = _numbers(given) if isinstance(given, Path) and given.suffix == ".txt" else None
    if isinstance(given, Path):
        inner = _inner(values if values is not None else next(iter(load_arrays(given).values())), given)
    else:
        inner = np.array(given, np.float64)
    size = (1.0, 1.0) if inner[..., :2].max() <= MAX_NORMALISED_FOCAL else None
    return replace(recorded, intrinsics=np.broadcast_to(inner, (len(recorded), 4)), size=size)


def _numbers(path: Path) -> np.ndarray:
    """The numbers of a text as the matrix that its lines make, or 3 or 4 rows of one line."""
    words = [line.replace(",", " ").split() for line in read_text(path, "a matrix").split("\n")]
    words = [line for line in words if line and line[0][0] != "#"]
    try:
        values = np.array([float(word) for line in words for word in line])
    except ValueError as error:
        raise RawError(f"{path}: {error}, expected the numbers of a matrix") from error
    shapes = {4: (4,), 9: (3, 3), 12: (3, 4), 16: (4, 4)}
    if len(values) not in shapes:
        raise RawError(f"{path}: {len(values)} numbers found, expected 3 x 3, 3 x 4 or 4 x 4")
    return values.reshape(shapes[len(values)])


def _in_order(recorded: Recorded, path: Path) -> Recorded:
    """By time, rising. Raises ``RawError`` where two cameras have one time."""
    for matrix, number in zip(recorded.extrinsics, range(len(recorded)), strict=True):
        check_rotation(matrix, f"{path}: camera {number}")
    if recorded.numbers is None:
        return recorded
    order = np.argsort(recorded.numbers, kind="stable")
    numbers = recorded.numbers[order]
    if (np.diff(numbers) == 0).any():
        twice = numbers[:-1][np.diff(numbers) == 0][0]
        raise RawError(f"{path}: the time {twice:.17g} twice, expected one camera for each time")
    return replace(
        recorded, extrinsics=recorded.extrinsics[order], intrinsics=recorded.intrinsics[order], numbers=numbers
    )
