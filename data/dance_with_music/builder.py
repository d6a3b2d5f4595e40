"""What ``shards build`` and ``shards synthesize`` ask of DanceWithMusic."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from stagecoach.data.builders import Builder
from stagecoach.data.building.jobs import EncodedSample, Statistics
from stagecoach.data.building.options import Argument
from stagecoach.data.dance_with_music.annotate import AnnotateDances, AnnotateDanceWithMusic
from stagecoach.data.dance_with_music.footage import open_footage
from stagecoach.data.dance_with_music.job import DanceJob, DanceStatistics, EncoderPaths, RawOptions
from stagecoach.data.dance_with_music.layouts import read_layout
from stagecoach.data.dance_with_music.picture import sample_picture
from stagecoach.data.dance_with_music.poses import load_poses
from stagecoach.data.dance_with_music.segment import SegmentOptions
from stagecoach.data.dance_with_music.skeleton import five_points
from stagecoach.data.dance_with_music.synthetic import write_synthetic
from stagecoach.data.streaming.dataset import Sample
from stagecoach.data.synthetic import Steps


@dataclass(frozen=True)
class SyntheticDances:
    frames: Annotated[int, Argument("frames per dance at 30 per second")] = 120
    height: Annotated[int, Argument("pixels")] = 64
    width: Annotated[int, Argument("pixels")] = 64


class FamilyBuilder(Builder):
    options = (RawOptions, SegmentOptions, EncoderPaths)
    annotate_options = (AnnotateDances,)
    synthetic_options = SyntheticDances
    items = "dances"
    tiny_encoders = "vae, image_encoder and arcface.onnx"

    def make_job(self, raw: Path, reading: RawOptions, options: SegmentOptions, paths: EncoderPaths) -> DanceJob:
        return DanceJob(raw, reading, options, paths)

    def make_annotate_job(self, raw: Path, output: Path, options: AnnotateDances) -> AnnotateDanceWithMusic:
        return AnnotateDanceWithMusic(raw, output, options)

    def write_raw(self, output: Path, count: int, seed: int, options: SyntheticDances, steps: Steps) -> None:
        write_synthetic(output, count, options.frames, options.height, options.width, seed, steps)

    def write_encoders(self, raw: Path, directory: Path, seed: int) -> None:
        """Fitted to every eighth frame of the dances."""
        from stagecoach.data.encoding.face_encoder import align_face
        from stagecoach.data.encoding.tiny_encoders import write_sd_encoders  # takes seconds to import

        frames, faces = [], []
        for dance in read_layout(raw, "videos")[0]:
            footage = open_footage(dance.footage, dance.rate)
            chosen = footage.chosen[::8]
            poses = load_poses(dance.poses, dance.reading, footage.size)
            xy, conf = poses.xy[chosen], poses.conf[chosen]
            for image, points, sure in zip(footage.read(chosen), xy, conf, strict=True):
                frames.append(image)
                five = five_points(points, sure)
                if five is not None:
                    faces.append(align_face(image, five * image.shape[1::-1]))
        write_sd_encoders(directory, np.stack(frames), np.stack(faces) if faces else np.zeros((0,)), seed)

    def count(self, statistics: Statistics | None, sample: EncodedSample) -> Statistics:
        maps = sample.arrays.get("music_map")
        statistics = statistics or DanceStatistics(
            sample.arrays["music"].shape[1], None if maps is None else maps.shape[1]
        )
        statistics.add(sample)
        return statistics

    def picture(self, sample: Sample) -> np.ndarray:
        return sample_picture(sample)
