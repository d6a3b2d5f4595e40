"""Maps of a clip, one for each picture: depth, points, masks, as the files that people have hold them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ImageOps

from stagecoach.data.building.jobs import RawError
from stagecoach.data.files import import_extra
from stagecoach.data.numpy_files import NpzFile, map_npy
from stagecoach.data.pictures import open_picture

PICTURES = (".png", ".tif", ".tiff")
SUFFIXES = (".npy", ".npz", ".exr", *PICTURES)
DEPTH_CHANNELS = ("Z", "Y", "depth", "R", "V")
"""Of an EXR file with several channels, the first of these that is there holds depth."""
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")


def numbered_files(folder: Path, suffixes: Sequence[str], expected: str) -> dict[int, Path]:
    """Files whose names end in a number, by it, rising. Raises ``RawError`` for two files of one number."""
    found: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        match = re.search(r"(\d+)$", file.stem)
        if match and file.suffix.lower() in suffixes:
            number = int(match[1])
            if number in found:
                raise RawError(
                    f"{folder}: {found[number].name} and {file.name} have one number, expected {expected}; keep one"
                )
            found[number] = file
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Maps:
    """A folder of numbered files, or one ``.npy`` or ``.npz`` of all. ``what`` they are: depth, points or mask."""

    path: Path
    what: Literal["depth", "points", "mask"]

    @property
    def channels(self) -> int:
        """Numbers for each pixel, 0 where there is one without an axis."""
        return 3 if self.what == "points" else 0

    @cached_property
    def files(self) -> dict[int, Path] | None:
        """By number; None of one file. Raises ``RawError``."""
        if not self.path.is_dir():
            return None
        return numbered_files(self.path, SUFFIXES, f"one {self.what} for each frame")

    @cached_property
    def count(self) -> int:
        return len(self.files) if self.files is not None else len(self._stack())

    def read(self, wanted: Sequence[int]) -> np.ndarray:
        """The maps at the ``wanted`` places in the order of their numbers, [F, h, w], points [F, h, w, 3], in the dtype
        of the file. Raises ``RawError``."""
        if self.files is None:
            return np.array(self._stack()[list(wanted)])
        files = list(self.files.values())
        maps = [self._read_one(files[place]) for place in wanted]
        odd = next((i for i, m in enumerate(maps) if m.shape != maps[0].shape), None)
        if odd is not None:
            raise RawError(f"{self.path}: frame {odd} has shape {maps[odd].shape}, expected {maps[0].shape} as frame 0")
        return np.stack(maps)

    def check(self, wanted: Sequence[int]) -> None:
        """Raises ``RawError`` where a wanted map is not there, or lies behind a gap in the numbers."""
        needed, row = max(wanted) + 1, self._in_a_row()
        if row < needed:
            names = f" in a row found, expected at least {needed} files frame_%04d" if self.files is not None else ""
            raise RawError(f"{self.path}: {self.what} of {row} frames{names or f' found, expected at least {needed}'}")

    def _in_a_row(self) -> int:
        """Maps before the first gap in the numbers, which may be time stamps, whose steps differ a little."""
        steps = np.diff(list(self.files or ()))
        if not len(steps):
            return self.count
        gaps = np.flatnonzero(steps > (1 if steps.min() == 1 else 1.5 * np.median(steps)))
        return int(gaps[0]) + 1 if len(gaps) else self.count

    def _stack(self) -> np.ndarray:
        return _fitting(_load(self.path, self.what), self.path, self.what, self.channels, ("T",))

    def _read_one(self, path: Path) -> np.ndarray:
        suffix = path.suffix.lower()
        if suffix == ".exr":
            array = _read_exr(path, self.what, self.channels)
        elif suffix in PICTURES:
            with open_picture(path) as image:
                if image.mode not in DEEP_MODES and self.what != "mask":
                    raise RawError(f"{path}: image of mode {image.mode} found, expected 16-bit grey {self.what}")
                array = np.asarray(ImageOps.exif_transpose(image))
        else:
            array = np.array(_load(path, self.what))
        return _fitting(array, path, self.what, self.channels, ())


def read_maps(path: Path, frames: int, what: Literal["depth", "points", "mask"]) -> np.ndarray:
    """The first ``frames`` maps, as ``Maps.read``."""
    maps = Maps(path, what)
    maps.check(range(frames))
    return maps.read(range(frames))


def _read_exr(path: Path, what: str, channels: int) -> np.ndarray:
    exr = import_extra("OpenEXR", "EXR files")
    try:
        with exr.File(str(path), separate_channels=True) as file:
            found = {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    except Exception as error:  # the library raises RuntimeError and TypeError
        raise RawError(f"{path}: not readable as EXR ({error}), expected {what}") from error
    if channels:
        wanted = next((names for names in ("XYZ", "RGB") if set(names) <= set(found)), None)
        if channels == len(wanted or ""):
            return np.stack([found[name] for name in wanted or ""], -1)
    else:
        for name in [*DEPTH_CHANNELS, *(found if len(found) == 1 else ())]:
            if name in found:
                return found[name]
    raise RawError(f"{path}: channels {sorted(found)} found, expected {what} as {'X Y Z' if channels else 'Z or one'}")


def _load(path: Path, what: str) -> np.ndarray:
    if path.suffix not in (".npy", ".npz"):
        raise RawError(
            f"{path}: found a {path.suffix or 'nameless'} file, expected {what} as a folder of frames, a .npy or a .npz"
        )
    try:
        if path.suffix == ".npy":
            return map_npy(path)
        with NpzFile(path) as archive:
            name = what if what in archive else next(iter(archive)) if len(archive) == 1 else None
            if name is None:
                raise RawError(f"{path}: arrays {sorted(archive)} found, expected one named {what!r}")
            return archive[name]
    except RawError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise RawError(f"{path}: not readable as {what} ({error}); it may be cut short") from error
    except Exception as error:  # zipfile.BadZipFile and zlib.error share no base with the above
        raise RawError(f"{path}: damaged archive of {what} ({error})") from error


def _fitting(array: np.ndarray, path: Path, what: str, channels: int, leading: tuple[str, ...]) -> np.ndarray:
    """The array without a last axis of one channel that is not asked for. Raises ``RawError`` for another shape."""
    wanted = [*leading, "H", "W", *([str(channels)] if channels else [])]
    fits = array[..., 0] if not channels and array.ndim == len(wanted) + 1 and array.shape[-1] == 1 else array
    if fits.ndim != len(wanted) or (channels and fits.shape[-1] != channels) or fits.dtype.kind not in "fiub":
        raise RawError(
            f"{path}: {what} of shape {array.shape} and dtype {array.dtype} found, expected numbers "
            f"[{', '.join(wanted)}]"
        )
    return fits
