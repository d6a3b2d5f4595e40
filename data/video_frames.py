"""Frames of a video as a player shows them: upright, each with its time, none that the decoder calls damaged.

The one place that decodes pictures of videos. What FFmpeg would conceal or flags as corrupt, a picture that a packet
promises and no frame holds, and a file that ends before its header says are refused by name.
"""

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import open_media, video_stream

DETECT = "crccheck+bitstream+buffer+explode"
"""FFmpeg's ``err_detect``: what is found ends the decoding instead of being painted over."""
ONE_FRAME_EACH = ("h264", "hevc", "av1", "mjpeg", "ffv1")
"""Codecs of which each packet becomes a frame; VP8 and MPEG-4 have packets that show nothing."""
CUT = 0.2
"""Seconds by which a stream may end before its header says."""
AGAIN = "copy it again or write it again from its source"


@dataclass(frozen=True)
class FrameTimes:
    """``times``: when the frames are shown, seconds on the container's axis, rising, float64 [n]; ``last``: for how
    many seconds the last one is shown, the median step."""

    times: np.ndarray
    last: float


def read_video(
    path: Path,
    start: float | None = None,
    keep: Callable[[float], bool] | None = None,
    expected: str = "expected a video",
) -> Iterator[tuple[float, np.ndarray]]:
    """Time (seconds on the container's axis) and picture (uint8 [h, w, 3] RGB, upright) of each frame in turn.

    Args:
        start: begin with the frame of this time, from the key frame before it.
        keep: given a time, whether its frame is wanted; the others are decoded and checked, but not converted.
        expected: ends the sentence on a file without a video.

    Raises:
        RawError: the file cannot be opened, holds no video or is cut; a frame is damaged, missing or without a time.
    """
    seen = _Seen()

    def failed(error: Exception) -> str:
        if not seen.packets:
            return _unreadable(error)
        return f"{_after(seen.time)} a frame cannot be decoded ({reason(error)}); it is damaged or cut, {AGAIN}"

    with open_media(path, failed) as container:
        stream = video_stream(container, path, expected)
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"err_detect": DETECT}
        one_each = stream.codec_context.name in ONE_FRAME_EACH
        if start:
            container.seek(int(start / stream.time_base), stream=stream, backward=True)
        leading = bool(start)  # frames before the key frame that was sought may refer to some before it
        for packet in container.demux(stream):
            seen.packet(packet, path)
            if not packet.size and not start:
                _check_end(stream, path, seen)
            for frame in packet.decode():
                leading = leading and not frame.key_frame
                seen.frame(frame, path, leading, one_each)
                if (start is None or seen.time >= start) and (keep is None or keep(seen.time)):
                    yield seen.time, upright(frame)
        if seen.time is None:
            raise RawError(f"{path}: no picture found, {expected}; it was cut or its writing was broken off, {AGAIN}")


def read_frames_at(path: Path, times: Sequence[float]) -> Iterator[np.ndarray]:
    """The pictures shown at ``times`` (of ``frame_times``; not falling, one may be there several times), uint8
    [h, w, 3] RGB, upright. Raises ``RawError`` as ``read_video``."""
    wanted = iter(times)
    current = next(wanted, None)
    if current is None:
        return
    sought = set(times)
    for time, picture in read_video(path, times[0] or None, sought.__contains__):
        while time == current:
            yield picture
            current = next(wanted, None)
        if current is None:
            return
    raise RawError(f"{path}: the pictures end before {_seconds(current)}, where a packet promises one; {AGAIN}")


def frame_times(path: Path, expected: str = "expected a video") -> FrameTimes:
    """Times of all frames from the packets, without decoding. Raises ``RawError``, also for a cut file."""
    seen = _Seen()
    with open_media(path, _unreadable) as container:
        stream = video_stream(container, path, expected)
        packets = []
        for packet in container.demux(stream):
            seen.packet(packet, path)
            if packet.pts is not None and not packet.is_discard:
                packets.append(float(packet.pts * packet.time_base))
        _check_end(stream, path, seen)
        rate = stream.average_rate or stream.guessed_rate
    times = np.array(sorted(packets))
    if not len(times):
        raise RawError(f"{path}: no frame with a time found, {expected}; write the file again as mp4 or mkv")
    steps = np.diff(times)
    if (steps <= 0).any():
        raise RawError(
            f"{path}: two frames at {_seconds(times[1:][steps <= 0][0])}, expected rising times; write the file again"
        )
    return FrameTimes(times, float(np.median(steps)) if len(steps) else 1 / float(rate or 1))


def declared_frames(path: Path, expected: str = "expected a video") -> int | None:
    """The frame count that the header declares; None where the container has none. Raises ``RawError``."""
    with open_media(path, _unreadable) as container:
        return video_stream(container, path, expected).frames or None


def upright(frame: Any) -> np.ndarray:
    """A decoded frame as a player shows it, uint8 [h, w, 3] RGB: turned and mirrored as its container says."""
    picture = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).astype(float) / 65536
    if a * d - b * c < 0:  # mirrored left and right, after which it is turned
        picture, a, b = picture[:, ::-1], -a, -b
    return np.ascontiguousarray(np.rot90(picture, round(np.degrees(np.arctan2(-b, a)) / 90)))


@dataclass
class _Seen:
    """What was found of a stream so far; ``time``: of the newest frame."""

    time: float | None = None
    packets: int = 0
    end: float | None = None
    first: float | None = None
    promised: list[int] = field(default_factory=list)

    def packet(self, packet: Any, path: Path) -> None:
        if not packet.size:
            return
        self.packets += 1
        time = None if packet.pts is None else float(packet.pts * packet.time_base)
        if packet.is_corrupt:
            raise RawError(f"{path}: the frame at {_seconds(time)} is damaged or cut; {AGAIN}")
        if time is not None and not packet.is_discard:
            insort(self.promised, packet.pts)
            self.first = time if self.first is None else min(time, self.first)
            self.end = max(time + float((packet.duration or 0) * packet.time_base), self.end or time)

    def frame(self, frame: Any, path: Path, leading: bool, one_each: bool) -> None:
        if frame.pts is None:
            raise RawError(
                f"{path}: a frame without a time found {_after(self.time)}, expected the time at which each is shown; "
                "write the file again as mp4 or mkv"
            )
        self.time = float(frame.pts * frame.time_base)
        if frame.is_corrupt and not leading:
            raise RawError(f"{path}: the decoder calls the frame at {_seconds(self.time)} damaged; {AGAIN}")
        while self.promised and self.promised[0] <= frame.pts:
            lost = self.promised.pop(0)
            if lost < frame.pts and one_each and not leading and not frame.interlaced_frame:
                raise RawError(
                    f"{path}: no picture at {_seconds(float(lost * frame.time_base))}, where a packet promises one; "
                    f"{AGAIN}"
                )


def _check_end(stream: Any, path: Path, seen: _Seen) -> None:
    """Refuse a stream that ends before its header says: by its table of frames (MP4) or its length (Matroska)."""
    table = len(stream.index_entries) if stream.container.format.name.startswith("mov") else 0
    if table > seen.packets:
        raise RawError(
            f"{path}: ends after {seen.packets} of the {table} frames that its header lists; it was cut, {AGAIN}"
        )
    tag = stream.metadata.get("DURATION")
    if not tag or seen.end is None:
        return
    hours, minutes, seconds = (float(part) for part in tag.split(":"))
    declared = hours * 3600 + minutes * 60 + seconds
    if seen.end < declared - CUT:
        raise RawError(
            f"{path}: ends after {seen.end:.3f} of the {declared:.3f} s that it declares; it was cut, {AGAIN}"
        )


def _unreadable(error: Exception) -> str:
    return f"not readable as a video ({reason(error)}); it is none or was cut short, {AGAIN}"


def reason(error: Exception) -> str:
    """What an error of FFmpeg says, without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def _seconds(time: float | None) -> str:
    return "an unknown time" if time is None else f"{time:.3f} s"


def _after(time: float | None) -> str:
    return "at its beginning" if time is None else f"after {time:.3f} s"
