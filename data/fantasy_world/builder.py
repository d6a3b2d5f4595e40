"""What ``shards build`` and ``shards synthesize`` ask of FantasyWorld."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from stagecoach.data.builders import Builder
from stagecoach.data.building.jobs import EncodedSample, Statistics
from stagecoach.data.building.options import Argument
from stagecoach.data.fantasy_world.annotate import AnnotateClips, AnnotateFantasyWorld
from stagecoach.data.fantasy_world.job import EncoderPaths, FantasyWorldJob
from stagecoach.data.fantasy_world.options import ClipOptions
from stagecoach.data.fantasy_world.raw import read_metadata
from stagecoach.data.fantasy_world.readers import read_frames
from stagecoach.data.fantasy_world.statistics import ClipStatistics, describe
from stagecoach.data.fantasy_world.synthetic import write_synthetic
from stagecoach.data.pictures import depth_colours, sheet
from stagecoach.data.streaming.dataset import Sample
from stagecoach.data.synthetic import Steps


@dataclass(frozen=True)
class SyntheticClips:
    frames: Annotated[int, Argument("frames per clip, 4k + 1")] = 9
    height: Annotated[int, Argument("pixels")] = 96
    width: Annotated[int, Argument("pixels")] = 128


class FamilyBuilder(Builder):
    options = (ClipOptions, EncoderPaths)
    annotate_options = (AnnotateClips,)
    synthetic_options = SyntheticClips
    tiny_encoders = "vae, text_encoder, tokenizer, image_encoder"

    def make_job(self, raw: Path, clip: ClipOptions, encoders: EncoderPaths) -> FantasyWorldJob:
        return FantasyWorldJob(raw, clip, encoders)

    def make_annotate_job(self, raw: Path, output: Path, options: AnnotateClips) -> AnnotateFantasyWorld:
        return AnnotateFantasyWorld(raw, output, options)

    def write_raw(self, output: Path, count: int, seed: int, options: SyntheticClips, steps: Steps) -> None:
        write_synthetic(output, count, options.frames, options.height, options.width, seed, steps)

    def write_encoders(self, raw: Path, directory: Path, seed: int) -> None:
        """Fitted to every fourth frame of the clips."""
        from stagecoach.data.encoding.tiny_encoders import write_wan_encoders  # takes seconds to import

        clips, _ = read_metadata(raw)
        frames = [frame for clip in clips for frame in list(read_frames(clip.video))[::4]]
        write_wan_encoders(directory, np.stack(frames), [clip.prompt for clip in clips], seed)

    def picture(self, sample: Sample) -> np.ndarray:
        """First frame, then the depth of the first, middle and last frame."""
        depth = sample.arrays["depth"]
        colours = depth_colours(depth[[0, len(depth) // 2, -1]])
        first = [sample.arrays["frame"]] if "frame" in sample.arrays else []
        panels = [*first, *colours]
        return sheet(panels, len(panels))

    def count(self, statistics: Statistics | None, sample: EncodedSample) -> Statistics:
        statistics = statistics or ClipStatistics(len(sample.arrays["depth"]))
        cameras = {name: sample.arrays[name].copy() for name in ("extrinsics", "intrinsics")}  # torch wants to write
        statistics.add(replace(sample, arrays={**sample.arrays, **cameras}, counted=False))
        return statistics

    def describe(self, statistics: Mapping[str, Any]) -> dict[str, Any]:
        return describe(statistics)
