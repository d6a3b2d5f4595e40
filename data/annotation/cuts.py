"""Where a video cuts from one shot to the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.files import import_extra


class CutDetector:
    """PySceneDetect's content detector: a cut is where hue, saturation and brightness change by more than ``threshold``
    (mean difference of neighbouring frames, 0 to 255)."""

    def __init__(self, threshold: float) -> None:
        self._scenes = import_extra("scenedetect", "shot cuts", "annotate")
        self._threshold = threshold

    def starts(self, video: Path) -> list[int]:
        """The first frame of each shot: 0 and the frame after each cut. Raises ``RawError``."""
        try:
            found = self._scenes.detect(str(video), self._scenes.ContentDetector(self._threshold, min_scene_len=1))
        except (self._scenes.VideoOpenFailure, OSError) as error:
            raise RawError(
                f"{video}: not readable as a video ({error}), expected frames to look for cuts in"
            ) from error
        return [0, *(start.frame_num for start, _ in found[1:])]


def cut_entry() -> Mapping[str, Any]:
    """What manifests say of it, in the place of an encoder."""
    scenes = import_extra("scenedetect", "shot cuts", "annotate")
    return {"name": "ContentDetector", "version": scenes.__version__}


def pieces(frames: Iterable[np.ndarray], starts: Sequence[int], length: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Runs of ``length`` frames one after another inside each shot, with the number of the first; a shorter rest of a
    shot is left out."""
    held: list[np.ndarray] = []
    for number, frame in enumerate(frames):
        if number in starts:
            held = []
        held.append(frame)
        if len(held) == length:
            yield number + 1 - length, held
            held = []
