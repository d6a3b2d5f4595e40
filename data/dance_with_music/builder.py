"""DanceWithMusic's part of ``launch/build_shards.py``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from stagecoach.data.builders import Builder, Track
from stagecoach.data.building.jobs import EncodedSample, Statistics
from stagecoach.data.dance_with_music.footage import open_footage
from stagecoach.data.dance_with_music.job import DanceJob, RawOptions
from stagecoach.data.dance_with_music.layouts import EXPECTED, LAYOUTS, read_layout
from stagecoach.data.dance_with_music.music import MUSIC_DIMS
from stagecoach.data.dance_with_music.picture import sample_picture
from stagecoach.data.dance_with_music.poses import PoseUnit, read_poses
from stagecoach.data.dance_with_music.segment import SegmentOptions
from stagecoach.data.dance_with_music.skeleton import five_points
from stagecoach.data.dance_with_music.splits import SPLIT_BY
from stagecoach.data.dance_with_music.statistics import DanceStatistics
from stagecoach.data.dance_with_music.synthetic import write_synthetic
from stagecoach.data.streaming.dataset import Sample


class FamilyBuilder(Builder):
    def add_build_arguments(self, parser: ArgumentParser) -> None:
        defaults = SegmentOptions()
        parser.add_argument(
            "--vae",
            type=Path,
            required=True,
            metavar="DIR",
            help="folder of Stable Diffusion's or Stable Video Diffusion's VAE",
        )
        parser.add_argument(
            "--image-encoder",
            type=Path,
            required=True,
            metavar="DIR",
            help="folder of CLIP's vision model with projection (ViT-L/14, or ViT-H/14 for SVD)",
        )
        parser.add_argument("--arcface", type=Path, required=True, metavar="FILE", help="ArcFace as .onnx")
        parser.add_argument(
            "--clip-resize",
            choices=("crop", "squash"),
            default="crop",
            help="how CLIP sees references: their middle (default), or all of them, squashed (SVD)",
        )
        parser.add_argument(
            "--layout",
            choices=sorted(LAYOUTS),
            default="videos",
            help="; ".join(f"{name}: {EXPECTED[name]}" for name in LAYOUTS) + " (default: videos)",
        )
        parser.add_argument(
            "--pose-unit",
            choices=get_args(PoseUnit),
            help="unit of the poses: divided by width and height, or pixels of 512 (default: pixel for "
            "layout clips, else normalised)",
        )
        parser.add_argument(
            "--picture-rate",
            type=float,
            metavar="X",
            help="pictures per second of folders (default: 60 for layout stableanimator, else 30)",
        )
        parser.add_argument(
            "--music",
            choices=sorted(MUSIC_DIMS),
            default=defaults.music,
            help=f"edge: 35 numbers per frame, computed from the sound (default); jukebox: "
            f"{MUSIC_DIMS['jukebox']} from files",
        )
        parser.add_argument("--height", type=int, default=defaults.height, help="pixels (default: 512)")
        parser.add_argument("--width", type=int, default=defaults.width, help="pixels (default: 512)")
        parser.add_argument(
            "--segment",
            type=int,
            default=defaults.frames,
            metavar="FRAMES",
            help="frames of the segments that long dances are cut into (default: 300)",
        )
        parser.add_argument(
            "--min-frames",
            type=int,
            default=defaults.min_frames,
            metavar="FRAMES",
            help="a shorter dance is an error (default: 24)",
        )
        parser.add_argument(
            "--references",
            type=int,
            default=defaults.references,
            metavar="R",
            help="references per segment: the picture of the dancer where there is one, and frames "
            "spread over the segment (default: 4)",
        )
        parser.add_argument(
            "--split-by",
            choices=sorted(SPLIT_BY),
            default="song-and-subject",
            help="what may not be in both splits (default: song-and-subject, where they are named)",
        )

    def job(self, arguments: Namespace) -> DanceJob:
        from stagecoach.data.dance_with_music.encode import EncoderPaths  # takes seconds to import

        reading = RawOptions(
            arguments.layout, arguments.pose_unit, arguments.picture_rate, arguments.split_by, arguments.holdout
        )
        options = SegmentOptions(
            arguments.height,
            arguments.width,
            arguments.segment,
            arguments.min_frames,
            arguments.references,
            arguments.music,
        )
        return DanceJob(
            arguments.input,
            reading,
            options,
            EncoderPaths(arguments.vae, arguments.image_encoder, arguments.arcface, arguments.clip_resize),
        )

    def add_synthesize_arguments(self, parser: ArgumentParser) -> None:
        for name, default, text in (
            ("frames", 120, "frames per dance at 30 per second"),
            ("height", 64, "pixels"),
            ("width", 64, "pixels"),
        ):
            parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
        parser.add_argument(
            "--encoders",
            type=Path,
            metavar="DIR",
            help="also write tiny encoders, fitted to the dances: vae, image_encoder and arcface.onnx below DIR",
        )

    def synthesize(self, arguments: Namespace, track: Track) -> dict[str, Any]:
        write_synthetic(
            arguments.output,
            arguments.clips,
            arguments.frames,
            arguments.height,
            arguments.width,
            arguments.seed,
            lambda numbers: track(numbers, "rendering", arguments.clips),
        )
        if arguments.encoders:
            write_encoders(arguments.output, arguments.encoders, arguments.seed)
        return {
            "output": str(arguments.output),
            "dances": arguments.clips,
            "encoders": str(arguments.encoders) if arguments.encoders else None,
        }

    def count(self, statistics: Statistics | None, sample: EncodedSample) -> Statistics:
        statistics = statistics or DanceStatistics(sample.arrays["music"].shape[1])
        statistics.add(sample)
        return statistics

    def picture(self, sample: Sample) -> np.ndarray:
        return sample_picture(sample)


def write_encoders(raw: Path, directory: Path, seed: int) -> None:
    """Fitted to every eighth frame of the dances."""
    from stagecoach.data.dance_with_music.tiny import write_tiny_encoders  # takes seconds to import
    from stagecoach.data.encoding.face_encoder import align_face

    frames, faces = [], []
    for dance in read_layout(raw, "videos")[0]:
        footage = open_footage(dance.footage, dance.rate)
        chosen = footage.chosen[::8]
        xy, conf = read_poses(dance.poses, chosen, dance.unit)
        for image, points, sure in zip(footage.read(chosen), xy, conf, strict=True):
            frames.append(image)
            five = five_points(points, sure)
            if five is not None:
                faces.append(align_face(image, five * image.shape[1::-1]))
    write_tiny_encoders(directory, np.stack(frames), np.stack(faces) if faces else np.zeros((0,)), seed)
