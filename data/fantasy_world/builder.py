"""FantasyWorld's part of ``launch/build_shards.py``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.builders import Builder, Track
from stagecoach.data.building.jobs import EncodedSample, Statistics
from stagecoach.data.fantasy_world.build import EncoderPaths, FantasyWorldJob
from stagecoach.data.fantasy_world.clip import ClipOptions
from stagecoach.data.fantasy_world.raw import read_metadata
from stagecoach.data.fantasy_world.readers import read_frames
from stagecoach.data.fantasy_world.statistics import ClipStatistics
from stagecoach.data.fantasy_world.synthetic import write_synthetic
from stagecoach.data.pictures import depth_colours, sheet
from stagecoach.data.streaming.dataset import Sample


class FamilyBuilder(Builder):
    def add_build_arguments(self, parser: ArgumentParser) -> None:
        _add_size(parser, frames=81, height=336, width=592)
        for part, what in (("vae", "AutoencoderKLWan"), ("text-encoder", "umT5"), ("tokenizer", "tokenizer")):
            parser.add_argument(f"--{part}", type=Path, required=True, metavar="DIR", help=f"folder of the {what}")
        parser.add_argument(
            "--image-encoder",
            type=Path,
            metavar="DIR",
            help="folder of the CLIP vision model; adds what image-to-video backbones need",
        )
        parser.add_argument(
            "--intrinsics",
            choices=("normalised", "pixel"),
            default="normalised",
            help="unit in the camera files: divided by width and height (default), or pixels",
        )
        parser.add_argument(
            "--depth-scale",
            type=float,
            default=1.0,
            metavar="X",
            help="what depth files are multiplied by to be in the unit of the camera translations",
        )

    def job(self, arguments: Namespace) -> FantasyWorldJob:
        clip = ClipOptions(
            arguments.frames, arguments.height, arguments.width, arguments.intrinsics, arguments.depth_scale
        )
        return FantasyWorldJob(
            arguments.input,
            clip,
            EncoderPaths(arguments.vae, arguments.text_encoder, arguments.tokenizer, arguments.image_encoder),
        )

    def add_synthesize_arguments(self, parser: ArgumentParser) -> None:
        _add_size(parser, frames=9, height=96, width=128)
        parser.add_argument(
            "--encoders",
            type=Path,
            metavar="DIR",
            help="also write tiny encoders, fitted to the clips, into vae, text_encoder, ... below DIR",
        )

    def synthesize(self, arguments: Namespace, track: Track) -> dict[str, Any]:
        write_synthetic(
            arguments.output,
            arguments.clips,
            arguments.frames,
            arguments.height,
            arguments.width,
            arguments.seed,
            lambda clips: track(clips, "rendering", arguments.clips),
        )
        if arguments.encoders:
            from stagecoach.data.encoding.tiny_encoders import write_tiny_encoders  # takes seconds to import

            clips, _ = read_metadata(arguments.output)
            frames = [frame for clip in clips for frame in list(read_frames(clip.video, arguments.frames))[::4]]
            write_tiny_encoders(arguments.encoders, np.stack(frames), [clip.prompt for clip in clips], arguments.seed)
        return {
            "output": str(arguments.output),
            "clips": arguments.clips,
            "encoders": str(arguments.encoders) if arguments.encoders else None,
        }

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


def _add_size(parser: ArgumentParser, frames: int, height: int, width: int) -> None:
    parser.add_argument("--frames", type=int, default=frames, help=f"frames per clip, 4k + 1 (default: {frames})")
    parser.add_argument("--height", type=int, default=height, help=f"pixels (default: {height})")
    parser.add_argument("--width", type=int, default=width, help=f"pixels (default: {width})")
