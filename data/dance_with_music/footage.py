"""The pictures of a dance with their times, from a video or a folder, resampled to 30 frames per second.

Frame k of a sample is the source frame whose time stamp is nearest to k / 30 s after the first (the earlier of two): a
source of 60 per second gives every second, one of 24 repeats some. Nothing is stretched, so music stays in time.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.data.pictures import SUFFIXES as PICTURES
from stagecoach.data.pictures import picture_size, read_picture
from stagecoach.data.video_frames import frame_times, read_frames_at, read_video

DANCE = "expected the dance"
ROUNDING = 1e-3
"""Frames by which time stamps may be off: containers round them."""


@dataclass(frozen=True)
class Footage:
    """``times``: seconds of the source frames on the container's axis, rising, float64 [n]; ``chosen``: the source
    frame of each frame at 30 per second, int64 [F]; ``files``: one per source frame where the source is a folder;
    ``size``: height and width of the upright pictures."""

    path: Path
    times: np.ndarray
    chosen: np.ndarray
    files: tuple[Path, ...] = ()
    size: tuple[int, int] = (0, 0)

    @property
    def start(self) -> float:
        """Seconds of the first frame on the container's axis."""
        return float(self.times[0])

    @property
    def rate(self) -> float:
        """Mean source frames per second."""
        return (len(self.times) - 1) / float(self.times[-1] - self.times[0]) if len(self.times) > 1 else FRAME_RATE

    def read(self, chosen: Sequence[int]) -> Iterator[np.ndarray]:
        """The pictures of rising source frames, uint8 [h, w, 3], one at a time. Raises ``RawError``."""
        if self.files:
            return (np.asarray(read_picture(self.files[k])) for k in chosen)
        return read_frames_at(self.path, self.times[list(chosen)].tolist())


@lru_cache(maxsize=64)
def open_footage(path: Path, rate: float) -> Footage:
    """``rate``: of a folder of pictures; a video has its own. Raises ``RawError``."""
    if path.is_dir():
        files = numbered_files(path, PICTURES)
        times = np.arange(len(files)) / rate
        names = tuple(files[n] for n in sorted(files))
        return Footage(path, times, nearest_frames(times, 1 / rate), names, picture_size(names[0]))
    shown = frame_times(path, DANCE)
    _, first = next(read_video(path, expected=DANCE))
    return Footage(path, shown.times, nearest_frames(shown.times, shown.last), size=first.shape[:2])


def nearest_frames(times: np.ndarray, last: float) -> np.ndarray:
    """The source frame of each frame at 30 per second, int64 [F], for source frames shown at ``times`` (seconds,
    rising), the last of them for ``last`` seconds."""
    times = times - times[0]
    count = int(np.ceil((times[-1] + last) * FRAME_RATE - ROUNDING))
    wanted = np.arange(max(count, 1)) / FRAME_RATE
    after = np.searchsorted(times, wanted - ROUNDING / FRAME_RATE).clip(1, max(len(times) - 1, 1))
    if len(times) == 1:
        return np.zeros(len(wanted), np.int64)
    nearer = wanted - times[after - 1] <= times[after] - wanted + ROUNDING / FRAME_RATE
    return np.where(nearer, after - 1, after)


def numbered_files(folder: Path, suffixes: Sequence[str]) -> dict[int, Path]:
    """Files whose names end in a number, by it: neighbouring numbers, from any first one. Raises ``RawError``."""
    found: dict[int, Path] = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        match = re.search(r"(\d+)$", file.stem)
        if match and file.suffix.lower() in suffixes:
            number = int(match[1])
            if number in found:
                raise RawError(
                    f"{folder}: {found[number].name} and {file.name} have the same number, expected one file per frame"
                )
            found[number] = file
    if not found:
        raise RawError(f"{folder}: no files frame_<number>{' or '.join(suffixes)} found, expected one per frame")
    first = min(found)
    missing = next((n for n in range(first, first + len(found)) if n not in found), None)
    if missing is not None:
        raise RawError(
            f"{folder}: {len(found)} numbered files found but none of number {missing}, expected one for each frame"
        )
    return found
