"""DanceWithMusic's part of a build: segments of dances become samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagecoach.data.building.jobs import BuildJob, EncodedSample, RawError, RawItem, Statistics
from stagecoach.data.building.partition import assign_splits as draw_splits
from stagecoach.data.dance_with_music.layouts import read_layout
from stagecoach.data.dance_with_music.music import MUSIC_DIMS
from stagecoach.data.dance_with_music.poses import PoseUnit
from stagecoach.data.dance_with_music.raw import RawDance
from stagecoach.data.dance_with_music.schema import dance_schema
from stagecoach.data.dance_with_music.segment import (
    Segment,
    SegmentOptions,
    check_segment,
    prepare_segment,
    segment_places,
)
from stagecoach.data.dance_with_music.splits import SplitBy, assign_splits
from stagecoach.data.dance_with_music.statistics import DanceStatistics
from stagecoach.data.files import sha256_json

if TYPE_CHECKING:
    from stagecoach.data.dance_with_music.encode import EncoderPaths, Encoders

PART_BYTES = 10**9


@dataclass(frozen=True)
class RawOptions:
    """How the raw data set is read. ``pose_unit``, ``picture_rate``: None is what the layout says."""

    layout: str = "videos"
    pose_unit: PoseUnit | None = None
    picture_rate: float | None = None
    split_by: SplitBy = "song-and-subject"
    holdout: float = 0.1


class DanceJob(BuildJob):
    """Items' records are ``SegmentPlace``. Raises ``EncoderError`` where an encoder's configuration cannot be read."""

    together = 1  # a segment is as many pictures as a device takes at once

    def __init__(self, raw: Path, reading: RawOptions, options: SegmentOptions, paths: EncoderPaths) -> None:
        from stagecoach.data.encoding.latent_encoders import clip_dim  # takes seconds

        self._raw, self._reading, self._options, self._paths = raw, reading, options, paths
        self.schema = dance_schema(MUSIC_DIMS[options.music], clip_dim(paths.image_encoder))
        pixels, music = options.height * options.width, MUSIC_DIMS[options.music]
        self.part_items = max(PART_BYTES // (options.frames * (pixels // 8 + 2 * music + 700)), 1)
        self._encoders: Encoders | None = None

    def items(self) -> tuple[list[RawItem], list[tuple[str, RawError]]]:
        dances, bad = self._dances
        splits = assign_splits(dances, self._reading.split_by, self._reading.holdout)
        # By dance, before the builder draws by sample: the segments of a dance stay on one side.
        splits = draw_splits([RawItem(dance.key, splits[dance.key], None) for dance in dances], self._reading.holdout)
        items, failed = [], []
        for dance in dances:
            try:
                items += [
                    RawItem(place.key, splits[dance.key], place) for place in segment_places(dance, self._options)
                ]
            except RawError as error:
                failed.append((dance.name, error))
        return items, bad + failed

    def settings(self) -> dict[str, Any]:
        dances, _ = self._dances
        base = f"{self._raw}/"  # where the data set lies does not matter
        described = [{name: str(value).replace(base, "") for name, value in asdict(d).items()} for d in dances]
        return {
            "reading": asdict(self._reading),
            "segments": asdict(self._options),
            "dances": sha256_json(described),
            "clip_resize": self._paths.clip_resize,
            "encoders": self._entries,
        }

    def check(self, item: RawItem) -> None:
        check_segment(item.record)

    def start(self) -> None:
        from stagecoach.data.dance_with_music.encode import Encoders

        self._encoders = Encoders(self._paths)

    def encoders(self) -> Mapping[str, Any]:
        return self._entries

    def prepare(self, item: RawItem) -> Segment:
        return prepare_segment(item.record, self._options)

    def encode(self, items: list[RawItem], prepared: list[Segment]) -> list[EncodedSample]:
        return [self._encoders.encode(segment) for segment in prepared]

    def statistics(self) -> Statistics:
        return DanceStatistics(MUSIC_DIMS[self._options.music])

    def summary(self, statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Frames, and references in which no face was found."""
        splits = statistics.values()
        return {
            "frames": sum(s["frame_count"] for s in splits),
            "references_without_face": sum(s["reference_count"] - s["reference_face_count"] for s in splits),
        }

    @cached_property
    def _dances(self) -> tuple[list[RawDance], list[tuple[str, RawError]]]:
        return read_layout(self._raw, self._reading.layout, self._reading.pose_unit, self._reading.picture_rate)

    @cached_property
    def _entries(self) -> dict[str, Any]:
        return self._paths.entries()
