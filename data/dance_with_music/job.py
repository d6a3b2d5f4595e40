"""How a build makes DanceWithMusic's samples: segments of dances become samples."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from stagecoach.data.building.jobs import (
    EncodedSample,
    EncodingJob,
    RawError,
    RawItem,
    Statistics,
    SumStatistics,
    items_per_part,
)
from stagecoach.data.building.options import Argument
from stagecoach.data.building.partition import assign_splits as draw_splits
from stagecoach.data.dance_with_music.layouts import LAYOUT_HELP, LAYOUTS, read_layout
from stagecoach.data.dance_with_music.music import MUSIC_DIMS, music_shape
from stagecoach.data.dance_with_music.persons import LARGEST, Person
from stagecoach.data.dance_with_music.pose_checks import Canvas, PoseUnit
from stagecoach.data.dance_with_music.pose_formats import PoseOrder
from stagecoach.data.dance_with_music.poses import Confidence, PoseReading
from stagecoach.data.dance_with_music.raw import RawDance
from stagecoach.data.dance_with_music.reference_noise import noise_input
from stagecoach.data.dance_with_music.schema import KEYPOINTS, LATENT_CHANNELS, dance_schema
from stagecoach.data.dance_with_music.segment import (
    CONFIDENCE_STEPS,
    POSE_STEPS,
    Segment,
    SegmentOptions,
    check_segment,
    prepare_segment,
    segment_extents,
)
from stagecoach.data.dance_with_music.skeleton import CONFIDENT
from stagecoach.data.dance_with_music.splits import SplitBy, assign_splits
from stagecoach.data.files import sha256_json

if TYPE_CHECKING:
    from stagecoach.data.dance_with_music.encode import Encoders

SQUASHED = "whole pictures, squashed"
"""What a manifest says of CLIP's input; of crops it says nothing."""


def parse_canvas(text: str) -> Canvas:
    """Raises ``ValueError``."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or "0" in match.groups():
        raise ValueError(f"canvas {text!r} found, expected WIDTHxHEIGHT in pixels, as in 1280x720")
    return float(match[1]), float(match[2])


def parse_person(text: str) -> Person:
    """Raises ``ValueError``."""
    if text != LARGEST and not text.isdecimal():
        raise ValueError(f"person {text!r} found, expected {LARGEST} or a number from 0")
    return text if text == LARGEST else int(text)


@dataclass(frozen=True)
class RawOptions:
    """How the raw data set is read. Raises ``ValueError``. None is what files or layout say."""

    layout: Annotated[str, Argument(LAYOUT_HELP, choices=sorted(LAYOUTS))] = "videos"
    pose_unit: Annotated[
        PoseUnit | None,
        Argument(
            "unit of the poses: divided by width and height, pixels, or -1..1 (default: what the file says or its form "
            "has; else pixel for layout clips, normalised for the others)"
        ),
    ] = None
    pose_canvas: Annotated[
        str | None,
        Argument(
            "pictures that poses in pixels were found in (default: what the file says; 512x512 for layout clips; else "
            "the video)",
            metavar="WIDTHxHEIGHT",
        ),
    ] = None
    pose_confidence: Annotated[
        Confidence, Argument("what confidences are: 0..1 (default), 0..100, or before the sigmoid")
    ] = "fraction"
    pose_order: Annotated[
        PoseOrder, Argument("of 134 points: DWPose's (default), or COCO-WholeBody's with the neck behind the body")
    ] = "dwpose"
    pose_rate: Annotated[
        float | None, Argument("poses per second (default: one for each frame of the video)", metavar="X")
    ] = None
    pose_posture: Annotated[
        Literal["upright", "any"], Argument("upright (default) refuses a dancer who never stands; any takes one")
    ] = "upright"
    person: Annotated[
        str,
        Argument(
            "of several: the one whose boxes are largest over the clip (default: largest), or the number in the first "
            "pose with so many; followed by where the points are",
            metavar="largest|INDEX",
        ),
    ] = LARGEST
    picture_rate: Annotated[
        float | None,
        Argument("pictures per second of folders (default: 60 for layout stableanimator, else 30)", metavar="X"),
    ] = None
    split_by: Annotated[
        SplitBy, Argument("what may not be in both splits (default: song-and-subject, where they are named)")
    ] = "song-and-subject"
    holdout: float = 0.1

    def __post_init__(self) -> None:
        self.poses()
        for name, rate in (("picture", self.picture_rate), ("pose", self.pose_rate)):
            if rate is not None and rate <= 0:
                raise ValueError(f"{name} rate {rate} found, expected a number per second above 0")

    def poses(self) -> PoseReading:
        """Raises ``ValueError`` for words of ``pose_canvas`` and ``person`` that say nothing."""
        return PoseReading(
            self.pose_unit,
            None if self.pose_canvas is None else parse_canvas(self.pose_canvas),
            self.pose_confidence,
            self.pose_order,
            parse_person(self.person),
            self.pose_rate,
            self.pose_posture,
        )


@dataclass(frozen=True)
class EncoderPaths:
    """Folders of the VAE and of CLIP's vision model, the ``.onnx`` of ArcFace, and how pictures are made CLIP's
    square."""

    vae: Annotated[Path, Argument("folder of Stable Diffusion's or Stable Video Diffusion's VAE")]
    image_encoder: Annotated[
        Path, Argument("folder of CLIP's vision model with projection (ViT-L/14, or ViT-H/14 for SVD)")
    ]
    arcface: Annotated[Path, Argument("ArcFace as .onnx", metavar="FILE")]
    clip_resize: Annotated[
        Literal["crop", "squash"],
        Argument("how CLIP sees references: their middle (default), or all of them, squashed (SVD)"),
    ] = "crop"
    reference_noise: Annotated[
        float,
        Argument(
            "deviation of the noise on the references' pixels (-1..1) before the VAE (default: 0; 0.02 for recipe "
            "default-svd)",
            metavar="X",
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.reference_noise <= 1:
            raise ValueError(f"reference noise {self.reference_noise} found, expected a deviation from 0 to 1")


class DanceStatistics(SumStatistics):
    """Sums that music is normalised by, and those of the trivial predictors that a trained network must beat.

    ``frame_count`` frames; ``music_*`` [Dm]; ``music_map_*`` [C], where there are such, over
    ``music_map_count`` values; ``pose_*`` [134] and [134][2], over points found, divided by width and height;
    ``latent_*`` [4] over ``latent_count`` values each; how many frames have a beat, how many a face, and how many
    references there are and have a face.
    """

    def __init__(self, music_dim: int, map_channels: int | None = None) -> None:
        counts = ("frame", "latent", "beat", "face", "reference", "reference_face")
        maps = {} if map_channels is None else {"music_map": (map_channels,)}
        shapes = {"music": (music_dim,), **maps, "pose": (KEYPOINTS, 2), "latent": (LATENT_CHANNELS,)}
        super().__init__(
            **{f"{name}_count": 0 for name in (*counts, *maps)},
            pose_count=np.zeros(KEYPOINTS),
            **{f"{name}_sum": np.zeros(shape) for name, shape in shapes.items()},
            **{f"{name}_square_sum": np.zeros(shape) for name, shape in shapes.items()},
        )

    def count(self, sample: EncodedSample) -> dict[str, Any]:
        arrays = sample.arrays
        music, latents = arrays["music"].astype(np.float64), arrays["latents"].astype(np.float64)
        sure = arrays["pose_conf"] >= CONFIDENT * CONFIDENCE_STEPS
        xy = arrays["pose_xy"].astype(np.float64) / POSE_STEPS * sure[..., None]
        maps = {}
        if "music_map" in arrays:
            seen = arrays["music_map"].astype(np.float64)
            maps = {
                "music_map_count": seen[:, 0].size,
                "music_map_sum": seen.sum((0, 2, 3)),
                "music_map_square_sum": (seen**2).sum((0, 2, 3)),
            }
        return maps | {
            "frame_count": len(music),
            "music_sum": music.sum(0),
            "music_square_sum": (music**2).sum(0),
            "pose_count": sure.sum(0),
            "pose_sum": xy.sum(0),
            "pose_square_sum": (xy**2).sum(0),
            "latent_count": latents[:, 0].size,
            "latent_sum": latents.sum((0, 2, 3)),
            "latent_square_sum": (latents**2).sum((0, 2, 3)),
            "beat_count": int(arrays["beat"].sum()),
            "face_count": int(arrays["face_valid"].sum()),
            "reference_count": len(arrays["ref_frame"]),
            "reference_face_count": int(arrays["ref_face_valid"].sum()),
        }


class DanceJob(EncodingJob):
    """Items' records are ``SegmentExtent``. Raises ``EncoderError`` where an encoder's configuration cannot be read."""

    together = 1  # a segment is as many pictures as a device takes at once

    def __init__(self, raw: Path, reading: RawOptions, options: SegmentOptions, paths: EncoderPaths) -> None:
        from stagecoach.data.encoding.image_encoders import ClipEncoder  # takes seconds

        self._raw, self._reading, self._options, self._paths = raw, reading, options, paths
        self._shape = (MUSIC_DIMS[options.music],) if options.music in MUSIC_DIMS else self._files_shape()
        maps = self._shape[0] if len(self._shape) == 3 else None
        self._dim = self._shape[0] if maps is None else MUSIC_DIMS["edge"]
        self.schema = dance_schema(self._dim, ClipEncoder.sizes(paths.image_encoder)[1], maps)
        pixels, music = options.height * options.width, prod(self._shape)
        self.part_items = items_per_part(options.frames * (pixels // 8 + 2 * music + 700))

    def items(self) -> tuple[list[RawItem], list[tuple[str, RawError]]]:
        dances, bad = self._dances
        splits = assign_splits(dances, self._reading.split_by, self._reading.holdout)
        # By dance, before the builder draws by sample: the segments of a dance stay on one side.
        splits = draw_splits([RawItem(dance.key, splits[dance.key], None) for dance in dances], self._reading.holdout)
        items, failed = [], []
        for dance in dances:
            try:
                items += [
                    RawItem(extent.key, splits[dance.key], extent) for extent in segment_extents(dance, self._options)
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
            "encoders": self.entries,
        }

    def check(self, item: RawItem) -> None:
        check_segment(item.record)

    def load(self) -> Encoders:
        from stagecoach.data.dance_with_music.encode import Encoders

        return Encoders(self._paths)

    def prepare(self, item: RawItem) -> Segment:
        return prepare_segment(item.record, self._options, self._shape)

    def encode(self, items: list[RawItem], prepared: list[Segment]) -> list[EncodedSample]:
        return [self.models.encode(segment) for segment in prepared]

    def statistics(self) -> Statistics:
        return DanceStatistics(self._dim, self._shape[0] if len(self._shape) == 3 else None)

    def summary(self, statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Frames, and references in which no face was found."""
        splits = statistics.values()
        return {
            "frames": sum(s["frame_count"] for s in splits),
            "references_without_face": sum(s["reference_count"] - s["reference_face_count"] for s in splits),
        }

    @cached_property
    def _dances(self) -> tuple[list[RawDance], list[tuple[str, RawError]]]:
        return read_layout(self._raw, self._reading.layout, self._reading.poses(), self._reading.picture_rate)

    def _files_shape(self) -> tuple[int, ...]:
        """Of a row of music, of the first dance that has files of them. Raises ``RawError``."""
        rows = next((dance.rows for dance in self._dances[0] if dance.rows), None)
        if rows is None:
            raise RawError(
                f"{self._raw}: no files of music found, expected rows [D] or pictures [C, H, W] per frame in "
                "music_features/<name>; --music edge computes rows from the sound"
            )
        return music_shape(rows)

    @cached_property
    def entries(self) -> dict[str, Any]:
        from transformers import CLIPVisionModelWithProjection

        from stagecoach.data.encoding.encoders import encoder_entries
        from stagecoach.data.encoding.face_encoder import face_entry
        from stagecoach.data.encoding.latent_encoders import vae_kind

        vae, clip = self._paths.vae, self._paths.image_encoder
        models = {"vae": (vae_kind(vae), vae), "image_encoder": (CLIPVisionModelWithProjection, clip)}
        found = {**encoder_entries(models), "arcface": face_entry(self._paths.arcface)}
        given = {
            "vae": noise_input(self._paths.reference_noise),
            "image_encoder": SQUASHED if self._paths.clip_resize == "squash" else None,
        }
        for role, text in given.items():
            if text is not None:
                found[role] = {**found[role], "input": text}
        return found
