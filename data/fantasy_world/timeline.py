"""Which cameras, pictures and maps make a clip: those of one time, chosen by ``--start``, ``--stride``, ``--fps``.

The steps of a clip are the cameras of its file in the order of time. A camera's picture is the one of its number where
the file counts frames or pictures have its number as their name, the one shown at its time where the file has times,
else the one in its place.
"""

from dataclasses import dataclass

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.fantasy_world.footage import Footage
from stagecoach.data.fantasy_world.maps import Maps
from stagecoach.data.fantasy_world.options import ClipOptions
from stagecoach.data.fantasy_world.readers import CLOCKS, clock_of
from stagecoach.data.fantasy_world.recorded import Recorded

LEEWAY = 0.55
"""How far a camera's time may be from that of its picture, in steps of the video: half of one, and rounding."""


class TooShortError(RawError):
    """Cameras, times or frames end before the clip does."""


@dataclass(frozen=True)
class Timeline:
    """``cameras``: places in ``Recorded``, ``frames``: places in ``Footage``, both int64 [F], rising."""

    cameras: np.ndarray
    frames: np.ndarray
    recorded: Recorded
    footage: Footage

    def maps(self, maps: Maps) -> np.ndarray:
        """The places of the clip's maps: by the numbers in their names where those are the names of the pictures or the
        numbers of the cameras, else one for each frame of the video, or one for each camera. Raises ``RawError``."""
        if maps.files is not None:
            places = {number: place for place, number in enumerate(maps.files)}
            names = list(self.footage.files) if self.footage.files is not None else None
            numbers = self.recorded.numbers
            # Cameras counted from 1 next to maps counted from 0: camera 1 belongs to map 0, as to picture 0.
            shifted = numbers is not None and numbers[0] == 1 and 0 in places
            for wanted in (
                [names[k] for k in self.frames] if names else [],
                [int(numbers[k]) for k in self.cameras] if _whole(numbers) and not shifted else [],
            ):
                if wanted and all(number in places for number in wanted):
                    return np.array([places[number] for number in wanted])
        of_cameras = maps.count == len(self.recorded) and maps.count != self.footage.count
        wanted = self.cameras if of_cameras else self.frames
        if not of_cameras and maps.count != self.footage.count and (self.cameras != self.frames).any():
            raise RawError(
                f"{maps.path}: {maps.what} of {maps.count} frames found, expected one for each of the "
                f"{self.footage.count} frames of {self.footage.path.name} or of the {len(self.recorded)} cameras"
            )
        maps.check(wanted)
        return wanted


def choose(recorded: Recorded, footage: Footage, options: ClipOptions, start: int, where: str) -> Timeline:
    """The clip that begins at camera ``start``. ``where``: the camera file, for messages. Raises ``RawError``."""
    times, frames = paired(recorded, footage, options, where)
    if options.fps is None:
        cameras = start + options.stride * np.arange(options.frames)
        if cameras[-1] >= len(recorded):
            steps = f", every {options.stride}th from {start} on" if (start, options.stride) != (0, 1) else ""
            raise TooShortError(
                f"{where}: {len(recorded)} cameras found, expected at least {cameras[-1] + 1}, one per frame of the "
                f"clip{steps}"
            )
    else:
        cameras = _at_rate(times if times is not None else _times_of(frames, footage), options, start, where)
    chosen = frames[cameras]
    if chosen[-1] >= footage.count:
        raise TooShortError(
            f"{footage.path}: {footage.count} frames found, expected at least {chosen[-1] + 1}; take a longer video or "
            "fewer frames per clip"
        )
    if times is not None and footage.files is None:
        _check_times(times[cameras], chosen, footage, where)
    return Timeline(cameras, chosen, recorded, footage)


def starts(first: Timeline, options: ClipOptions, where: str) -> list[int]:
    """Where the clips of a video begin, at most ``clips_per_video``: the ``first``, and each after the last camera of
    the one before, to the end of the video. A clip that is bad is among them, so that it is reported as one."""
    found, cameras = [int(first.cameras[0])], first.cameras
    while len(found) < (options.clips_per_video or np.inf):
        after = int(cameras[-1]) + options.stride
        try:
            cameras = choose(first.recorded, first.footage, options, after, where).cameras
        except TooShortError:
            break
        except RawError:
            cameras = cameras - cameras[0] + after
        found.append(after)
    return found


def _whole(numbers: np.ndarray | None) -> bool:
    """Whether they may be names: fractions are seconds."""
    return numbers is not None and bool((numbers == np.round(numbers)).all())


def paired(
    recorded: Recorded, footage: Footage, options: ClipOptions, where: str
) -> tuple[np.ndarray | None, np.ndarray]:
    """Seconds of the cameras on the video's axis, None where the file has none, and the place of each one's picture."""
    numbers = recorded.numbers
    if numbers is None:
        return None, np.arange(len(recorded))
    clock = clock_of(numbers) if recorded.clock == "auto" else recorded.clock
    seconds = None if clock == "frames" else numbers * CLOCKS[clock]
    if footage.files is not None:
        places = {number: place for place, number in enumerate(footage.files)}
        if all(number in places for number in numbers):
            return seconds, np.array([places[int(number)] for number in numbers])
        if clock != "frames" or len(places) == len(recorded):
            if len(places) != len(recorded):
                raise RawError(
                    f"{footage.path}: {len(places)} pictures for {len(recorded)} cameras of {where} found, and names "
                    "that are not their times, expected pictures named by the first column, or one for each camera"
                )
            return seconds, np.arange(len(recorded))
    if seconds is None:
        first = numbers[0] if numbers[-1] >= footage.count or numbers[0] == 1 else 0
        return None, (numbers - first).astype(np.int64)
    step = float(np.median(np.diff(footage.times))) if footage.count > 1 else 0.0
    if seconds[-1] > footage.times[-1] + LEEWAY * step:  # times of a longer video, of which this is a part
        seconds = seconds - seconds[0]
    after = np.searchsorted(footage.times, seconds).clip(1, max(footage.count - 1, 1))
    if footage.count < 2:
        return seconds, np.zeros(len(seconds), np.int64)
    before = seconds - footage.times[after - 1] <= footage.times[after] - seconds
    return seconds, np.where(before, after - 1, after)


def _check_times(seconds: np.ndarray, frames: np.ndarray, footage: Footage, where: str) -> None:
    """Refuse cameras without a picture of their time."""
    steps = np.diff(footage.times)
    near = np.maximum(np.append(steps, steps[-1:])[frames], np.append(steps[:1], steps)[frames]) if len(steps) else 1.0
    off = np.abs(footage.times[frames] - seconds)
    if (off > LEEWAY * near).any():
        k = int((off - LEEWAY * near).argmax())
        raise RawError(
            f"{where}: a camera at {seconds[k]:.3f} s found, where {footage.path.name} has its nearest picture at "
            f"{footage.times[frames[k]]:.3f} s, expected one of its time; give --camera-clock, or cut fewer frames"
        )
    if (np.diff(frames) == 0).any():
        raise RawError(
            f"{where}: two cameras for the picture at {footage.times[frames[:-1][np.diff(frames) == 0][0]]:.3f} s of "
            f"{footage.path.name} found, expected at most one; give --stride or --fps"
        )


def _times_of(frames: np.ndarray, footage: Footage) -> np.ndarray:
    if footage.files is not None:
        raise RawError(f"{footage.path}: pictures without times found, where --fps needs them; give --stride instead")
    return footage.times[frames[frames < footage.count]]


def _at_rate(seconds: np.ndarray, options: ClipOptions, start: int, where: str) -> np.ndarray:
    """The cameras nearest to times ``fps`` apart."""
    rate = float(options.fps or 1)
    first = seconds[start] if start < len(seconds) else np.inf
    wanted = first + np.arange(options.frames) / rate
    step = float(np.median(np.diff(seconds))) if len(seconds) > 1 else np.inf
    if wanted[-1] > seconds[-1] + step / 2:
        raise TooShortError(
            f"{where}: times to {seconds[-1]:.3f} s found, expected them to {wanted[-1]:.3f} s for {options.frames} "
            f"frames at {rate:g} per second from camera {start} on"
        )
    after = np.searchsorted(seconds, wanted).clip(1, len(seconds) - 1)
    cameras = np.where(wanted - seconds[after - 1] <= seconds[after] - wanted + 1e-9, after - 1, after)
    if (np.diff(cameras) == 0).any():
        raise RawError(
            f"{where}: cameras or frames about {step:.3g} s apart found, too few for --fps {rate:g}; give at most "
            f"{1 / step:.3g}"
        )
    return cameras
