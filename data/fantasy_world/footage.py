"""The pictures of a raw clip: a video, or a folder with a picture for each frame."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.fantasy_world.maps import numbered_files
from stagecoach.data.pictures import SUFFIXES, read_picture
from stagecoach.data.video_frames import declared_frames, frame_times, read_frames_at, read_video

EXPECTED = "expected the pictures of a clip"


@dataclass(frozen=True)
class Footage:
    """``path``: a video, or a folder of pictures whose names end in a number, in the order of these. Its properties
    raise ``RawError``."""

    path: Path

    @cached_property
    def files(self) -> dict[int, Path] | None:
        """By number; None of a video."""
        return numbered_files(self.path, SUFFIXES, "one picture for each frame") if self.path.is_dir() else None

    @cached_property
    def count(self) -> int:
        """Frames, of a video those that its header declares, if it does."""
        if self.files is not None:
            return len(self.files)
        return declared_frames(self.path, EXPECTED) or len(self.times)

    @cached_property
    def times(self) -> np.ndarray:
        """Presentation times of a video's frames, float64 [n], rising from 0, in seconds."""
        times = frame_times(self.path, EXPECTED).times
        return times - times[0]

    def read(self, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        """The pictures at rising places, uint8 [h, w, 3] RGB, upright, one at a time. Raises ``RawError``."""
        if self.files is not None:
            files = list(self.files.values())
            yield from (np.asarray(read_picture(files[place])) for place in wanted)
            return
        if list(wanted) != list(range(len(wanted))):
            start = frame_times(self.path, EXPECTED).times
            yield from read_frames_at(self.path, [float(start[place]) for place in wanted])
            return
        found = 0
        for _, picture in read_video(self.path, expected=EXPECTED):
            yield picture
            found += 1
            if found == len(wanted):
                return
        raise RawError(
            f"{self.path}: {found} frames found, expected at least {len(wanted)}; take a longer video or fewer frames "
            "per clip"
        )
