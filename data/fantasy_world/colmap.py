"""COLMAP's text model (cameras.txt, images.txt): world to camera, quaternions as w x y z, pixel centres at halves."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import read_text
from stagecoach.data.fantasy_world.camera_track import Cameras
from stagecoach.data.fantasy_world.cameras import quaternion_from_rotation, rotation_from_quaternion
from stagecoach.data.files import atomic_file, import_extra

PINHOLES = {"SIMPLE_PINHOLE": [0, 0, 1, 2], "PINHOLE": [0, 1, 2, 3]}
"""Where fx fy cx cy stand in the parameters of the models without distortion."""


def is_colmap(path: Path) -> bool:
    """Whether it is a folder with a reconstruction of COLMAP, or its ``images.txt`` or ``images.bin``."""
    folder = path if path.is_dir() else path.parent if path.stem == "images" else None
    return folder is not None and any((folder / f"cameras{suffix}").exists() for suffix in (".txt", ".bin"))


def read_colmap(folder: Path) -> tuple[Cameras, np.ndarray]:
    """The cameras of all registered images in the order of their names, and their frame numbers, float64 [F], rising:
    the last number in each name, so that an image that COLMAP left out leaves a gap; else 0, 1, 2, ... .

    Raises ``RawError``.
    """
    if not (folder / "cameras.txt").exists() and (folder / "cameras.bin").exists():
        with TemporaryDirectory() as text:
            _write_as_text(folder, text)
            return read_colmap(Path(text))
    inner, sizes = _read_cameras(folder / "cameras.txt")
    images = {}
    path = folder / "images.txt"
    lines = enumerate(_lines(path), 1)
    for number, line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        _, points = next(lines, (0, ""))  # perhaps an empty line
        words = line.split(maxsplit=9)
        where = f"{path}:{number}"
        try:
            if len(points.split()) % 3:
                raise ValueError("points are X Y POINT3D_ID")
            values = [float(word) for word in words[1:8]]
            camera, name = int(words[8]), words[9].strip()
        except (ValueError, IndexError) as error:
            raise RawError(
                f"{where}: {line.strip()!r:.80} found, expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, and a "
                "line of points after each"
            ) from error
        if camera not in inner:
            raise RawError(f"{where}: camera {camera} found, expected one of {sorted(inner)} of cameras.txt")
        if not np.isfinite(values).all() or not np.linalg.norm(values[:4]) > 0.5:
            raise RawError(f"{where}: pose {values} found, expected a unit quaternion and a translation")
        if name in images:
            raise RawError(f"{where}: the image {name!r} again, expected each once")
        images[name] = (values, camera)
    if not images:
        raise RawError(f"{path}: no image found, expected the registered images of a reconstruction")
    names = sorted(images, key=_natural)
    used = sorted({images[name][1] for name in names})
    if len({sizes[camera] for camera in used}) > 1:
        raise RawError(f"{folder}: cameras {used} have different sizes, expected the frames of one video")
    poses = np.array([images[name][0] for name in names])
    rotations = rotation_from_quaternion(torch.from_numpy(poses[:, [1, 2, 3, 0]])).numpy()
    cameras = Cameras(
        np.concatenate([rotations, poses[:, 4:, None]], -1),
        np.array([inner[images[name][1]] for name in names]),
        *sizes[used[0]],
    )
    found = [re.findall(r"\d+", Path(name).stem) for name in names]
    numbers = np.array([float(digits[-1]) if digits else np.nan for digits in found])
    rising = len(names) == 1 or bool((np.diff(numbers) > 0).all())
    return cameras, numbers if rising and np.isfinite(numbers).all() else np.arange(len(names), dtype=np.float64)


def _write_as_text(folder: Path, text: str) -> None:
    pycolmap = import_extra(
        "pycolmap", "COLMAP's binary files (or write them as text: colmap model_converter)", "annotate"
    )
    try:
        pycolmap.Reconstruction(str(folder)).write_text(text)
    except Exception as error:  # the library raises RuntimeError and ValueError
        raise RawError(f"{folder}: not readable as COLMAP's binary files ({error}); write them as text") from error


def _read_cameras(path: Path) -> tuple[dict[int, list[float]], dict[int, tuple[int, int]]]:
    """By camera: fx fy cx cy, and height and width."""
    inner, sizes = {}, {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        if len(words) > 1 and words[1] not in PINHOLES:
            raise RawError(
                f"{path}:{number}: camera model {words[1]} found, expected {' or '.join(PINHOLES)}; undistort the "
                "images first (colmap image_undistorter)"
            )
        try:
            values = [float(word) for word in words[4:]]
            inner[int(words[0])] = [values[k] for k in PINHOLES[words[1]]]
            sizes[int(words[0])] = int(words[3]), int(words[2])
        except (ValueError, IndexError) as error:
            raise RawError(
                f"{path}:{number}: {line.strip()!r:.80} found, expected CAMERA_ID MODEL WIDTH HEIGHT PARAMETERS"
            ) from error
        if not np.isfinite(values).all() or min(inner[int(words[0])][:2]) <= 1:
            raise RawError(f"{path}:{number}: parameters {values} found, expected focal lengths in pixels")
    return inner, sizes


def _lines(path: Path) -> list[str]:
    return read_text(path, f"COLMAP's {path.name}").split("\n")


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Numbers in a name by their value."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def write_colmap(folder: Path, cameras: Cameras, pattern: str = "frame_{:05d}.png") -> None:
    """Write cameras.txt, images.txt and an empty points3D.txt: a PINHOLE camera for each kind of intrinsics, and an
    image without points for each frame."""
    kinds, which = np.unique(cameras.intrinsics, axis=0, return_inverse=True)
    turns = quaternion_from_rotation(torch.from_numpy(cameras.extrinsics[..., :3])).numpy()[:, [3, 0, 1, 2]]
    size = f"{cameras.width:g} {cameras.height:g}"

    def text(values: np.ndarray) -> str:
        return " ".join(f"{x:.12g}" for x in values)

    with atomic_file(folder / "cameras.txt", "w") as file:
        file.write("# CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY\n")
        file.writelines(f"{k} PINHOLE {size} {text(kind)}\n" for k, kind in enumerate(kinds, 1))
    with atomic_file(folder / "images.txt", "w") as file:
        file.write("# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME\n# POINTS2D: none\n")
        for k, (turn, outer) in enumerate(zip(turns, cameras.extrinsics, strict=True)):
            name = pattern.format(k)
            file.write(f"{k + 1} {text(turn)} {text(outer[:, 3])} {int(which.reshape(-1)[k]) + 1} {name}\n\n")
    with atomic_file(folder / "points3D.txt", "w"):
        pass
