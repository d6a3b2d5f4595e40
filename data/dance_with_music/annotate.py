"""From plain videos and songs to DanceWithMusic's raw layout: poses of the videos, songs under their names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from stagecoach.data.annotation.job import Annotated as Found
from stagecoach.data.annotation.job import AnnotateJob, Unannotated
from stagecoach.data.annotation.paths import check_models, find_videos, key_of, take
from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.options import Argument
from stagecoach.data.dance_with_music.drawing import draw_skeleton
from stagecoach.data.dance_with_music.footage import open_footage
from stagecoach.data.dance_with_music.raw import SOUNDS, sound_beside
from stagecoach.data.encoding.audio import has_audio
from stagecoach.data.files import atomic_file
from stagecoach.data.outputs.sheet import contact_sheet, spread

DIGITS = 6
CONFIDENT_SHARE = 0.5
"""Of the frames; a video in which nobody is found more often is left out."""


@dataclass(frozen=True)
class AnnotateDances:
    """Which models, and where the songs are."""

    pose: Annotated[
        Path, Argument("whole-body network: .onnx of DWPose or RTMPose, or folder of ViTPose", metavar="PATH")
    ]
    detector: Annotated[
        Path, Argument("detector of persons: .onnx of YOLOX, or folder of a detector of transformers", metavar="PATH")
    ]
    songs: Annotated[
        Path | None, Argument("folder of sound files, each named as its video (default: a video's own sound)")
    ] = None
    cut_threshold: Annotated[
        float, Argument("change of a picture that is a cut; a dance with one is left out (0: no such check)")
    ] = 27.0


class AnnotateDanceWithMusic(AnnotateJob):
    """Videos below ``raw`` and ``raw/videos``. Raises ``RawError`` where a model is not where it should be."""

    def __init__(self, raw: Path, output: Path, options: AnnotateDances) -> None:
        check_models({"pose": options.pose, "detector": options.detector, "songs": options.songs})
        self._raw, self.output, self._options = raw, output, options
        self._poses: Any = None

    def items(self) -> list[Unannotated]:
        songs = self._songs()
        items = []
        for key, video in find_videos(self._raw):
            song = songs.get(key)
            items.append(Unannotated(key, [video, *([song] if song else [])], {"video": video, "song": song}))
        return items

    def models(self) -> Mapping[str, Mapping[str, Any]]:
        from stagecoach.data.annotation.cuts import cut_entry
        from stagecoach.data.annotation.poses import pose_entries

        cuts = {"cuts": cut_entry()} if self._options.cut_threshold else {}
        return {**pose_entries(self._options.pose, self._options.detector), **cuts}

    def settings(self) -> dict[str, Any]:
        return {"cut_threshold": self._options.cut_threshold}

    def start(self) -> None:
        from stagecoach.data.annotation.poses import open_pose_estimator

        self.use(open_pose_estimator(self._options.pose, self._options.detector))

    def use(self, poses: Any) -> None:
        """Take this (``PoseEstimator``)."""
        self._poses = poses

    def targets(self, item: Unannotated) -> list[str]:
        song = [f"audio/{item.key}{item.record['song'].suffix.lower()}"] if item.record["song"] else []
        return [f"videos/{item.key}{item.record['video'].suffix.lower()}", f"poses/{item.key}", *song]

    def annotate(self, item: Unannotated, given: frozenset[str]) -> Found:
        video, song = item.record["video"], item.record["song"]
        film, poses, *sound = self.targets(item)
        if song is None and sound_beside(self._raw, video.stem) is None and not has_audio(video):
            raise RawError(f"{video}: neither sound nor a song found, expected {item.key}.wav or the like in --songs")
        if self._options.cut_threshold:
            from stagecoach.data.annotation.cuts import CutDetector

            cuts = CutDetector(self._options.cut_threshold).starts(video)[1:]
            if cuts:
                raise RawError(
                    f"{video}: cuts at frames {cuts[:5]} found, expected one shot; cut it into videos of one, or give "
                    "--cut-threshold 0"
                )
        made = Found()
        for target, source in ((film, video), *((name, song) for name in sound)):
            if target not in given:
                take(source, self.output / target)
                made.files.append(target)
        if poses in given:
            return made
        footage = open_footage(video, 0)
        found = self._poses.estimate(footage.read(range(len(footage.times))))
        seen = float((found[..., 2] > 0).any(1).mean())
        if seen < CONFIDENT_SHARE:
            raise RawError(f"{video}: a person in {seen:.0%} of the frames found, expected one in half of them or more")
        for number, points in enumerate(found):
            rows = [[round(float(v), DIGITS) for v in point] for point in points]
            with atomic_file(self.output / poses / f"frame_{number:05d}.json", "w") as file:
                json.dump({"keypoints": rows, "frame_id": number}, file)
        made.files.append(poses)
        made.numbers = {"frames": len(found), "seen": round(seen, 4)}
        return made

    def preview(self, item: Unannotated) -> np.ndarray | None:
        """Frames with their skeletons."""
        film, poses, *_ = self.targets(item)
        files = sorted((self.output / poses).glob("*.json"))
        if not files:
            return None
        shown = spread(len(files))
        frames = open_footage(self.output / film, 0).read(shown)
        tables = [np.array(json.loads(files[k].read_text())["keypoints"]) for k in shown]
        drawn = [draw_skeleton(image, t[:, :2], t[:, 2]) for image, t in zip(frames, tables, strict=True)]
        return contact_sheet({item.key: np.stack(drawn)})

    def _songs(self) -> dict[str, Path]:
        folder = self._options.songs
        if folder is None:
            return {}
        found = {key_of(path.stem): path for path in sorted(folder.iterdir()) if path.suffix.lower() in SOUNDS}
        if not found:
            raise RawError(f"{folder}: no song found, expected {', '.join(SOUNDS)} named as the videos")
        return found
