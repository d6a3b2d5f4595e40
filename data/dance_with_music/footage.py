"""The pictures of a dance with their times, from a video or a folder, resampled to 30 frames per second.

Frame k of a sample is the source frame whose time stamp is nearest to k / 30 s after the first (the earlier of two): a
source of 60 per second gives every second, one of 24 repeats some. Nothing is stretched, so music stays in time.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import open_media, video_stream
from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.data.pictures import SUFFIXES as PICTURES
from stagecoach.data.pictures import picture_size, read_picture

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
        return (np.asarray(read_picture(self.files[k])) for k in chosen) if self.files else self._decode(chosen)

    def _decode(self, chosen: Sequence[int]) -> Iterator[np.ndarray]:
        wanted = iter(chosen)
        current = next(wanted, None)

        def failed(error: Exception) -> str:
            return f"not decodable at frame {current} ({error}); it may be cut short"

        with open_media(self.path, failed) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if current:
                container.seek(int(self.times[current] / stream.time_base), stream=stream, backward=True)
            for frame in container.decode(stream):
                number = -1 if frame.time is None else int(np.abs(self.times - frame.time).argmin())
                if current is not None and number > current:
                    raise RawError(
                        f"{self.path}: no picture at {self.times[current]:.3f} s, where its packets promise one; the "
                        "file is damaged"
                    )
                while number == current:
                    yield upright(frame)
                    current = next(wanted, None)
                if current is None:
                    return
        raise RawError(
            f"{self.path}: the pictures end before frame {current}, where its packets promise "
            f"{len(self.times)}; it may be cut short"
        )


@lru_cache(maxsize=64)
def open_footage(path: Path, rate: float) -> Footage:
    """``rate``: of a folder of pictures; a video has its own. Raises ``RawError``."""
    if path.is_dir():
        files = numbered_files(path, PICTURES)
        times = np.arange(len(files)) / rate
        names = tuple(files[n] for n in sorted(files))
        return Footage(path, times, nearest_frames(times, 1 / rate), names, picture_size(names[0]))
    times, last, size = _frame_times(path)
    return Footage(path, times, nearest_frames(times, last), size=size)


def upright(frame: Any) -> np.ndarray:
    """The picture of a decoded frame as a player shows it, uint8 [h, w, 3]: turned as its container says."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


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


def _frame_times(path: Path) -> tuple[np.ndarray, float, tuple[int, int]]:
    """Times of the frames and how long the last is shown, from the packets; and the size of the first one, the only one
    that is decoded."""
    with open_media(path, lambda error: f"not readable as a video ({error})") as container:
        stream = video_stream(container, path, "expected the dance")
        packets = [p for p in container.demux(stream) if p.pts is not None and not p.is_discard]
        times = np.array(sorted(float(p.pts * p.time_base) for p in packets))
        rate = stream.average_rate
        if len(times):
            container.seek(0)
            size = next((upright(frame).shape[:2] for frame in container.decode(stream)), (0, 0))
    if not len(times):
        raise RawError(f"{path}: no frame with a time stamp found, expected the dance")
    steps = np.diff(times)
    if (steps <= 0).any():
        raise RawError(
            f"{path}: two frames at {times[1:][steps <= 0][0]:.3f} s, expected rising time stamps; write the file again"
        )
    return times, float(np.median(steps)) if len(steps) else 1 / float(rate or FRAME_RATE), size
