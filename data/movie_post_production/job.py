"""How a build makes MoviePostProduction's samples: pictures with captions and boxes become samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from stagecoach.data.movie_post_production.captions import Boxes, RawPicture, read_captions
from stagecoach.data.movie_post_production.options import BuildOptions, Dims
from stagecoach.data.movie_post_production.prepare import Prepared, check_picture, precomputed_files, prepare_picture
from stagecoach.data.movie_post_production.schema import DEPTH_LABELS
from stagecoach.data.names import composed

if TYPE_CHECKING:
    from stagecoach.data.encoding.encoders import EncoderEntry
    from stagecoach.data.movie_post_production.encode import Encoders

TRAINED_SHARE = 0.9
"""Share of the caption files, by name, that the guide trains on."""


class MovieStatistics(SumStatistics):
    """Sums from which the trivial predictors follow that a trained network must beat.

    ``latent_sum``, ``latent_square_sum`` by channel, over ``latent_count`` values each; ``objects_by_depth`` as
    ``DEPTH_LABELS``; ``box_area_sum`` in fractions of the pictures; ``dino_sum`` of the unit vectors, whose squared
    length over the squared number of objects is the mean cosine between two of them. ``sample.counted``: the latent as
    float32 [C, h, w] before it was rounded, and how many objects were dropped.
    """

    def __init__(self, channels: int, dino_dim: int) -> None:
        super().__init__(
            samples=0,
            objects_by_depth=np.zeros(len(DEPTH_LABELS), np.int64),
            dropped_objects=0,
            box_area_sum=0.0,
            latent_sum=np.zeros(channels),
            latent_square_sum=np.zeros(channels),
            latent_count=0,
            dino_sum=np.zeros(dino_dim),
        )

    def count(self, sample: EncodedSample) -> dict[str, Any]:
        latent, dropped = sample.counted
        values, boxes = latent.astype(np.float64), sample.arrays["boxes"].astype(np.float64)
        return {
            "samples": 1,
            "objects_by_depth": np.bincount(sample.arrays["depth"], minlength=len(DEPTH_LABELS)),
            "dropped_objects": dropped,
            "box_area_sum": float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum()),
            "latent_sum": values.sum((1, 2)),
            "latent_square_sum": (values**2).sum((1, 2)),
            "latent_count": latent[0].size,
            "dino_sum": sample.arrays["dino"].astype(np.float64).sum(0),
        }


class MovieJob(EncodingJob):
    """Items' records are ``RawPicture``. Raises ``EncoderError`` where an encoder's configuration cannot be read."""

    def __init__(self, raw: Path, options: BuildOptions) -> None:
        self._raw, self._options = raw, options
        self._dims = Dims.of(options)
        self.schema = self._dims.schema(options)
        self.part_items = items_per_part(self._dims.sample_bytes(options))

    def items(self) -> tuple[list[RawItem], list[tuple[str, RawError]]]:
        pictures, bad, names = self._captions
        trained = set(names[: int(TRAINED_SHARE * len(names))])
        return [RawItem(p.key, self._split(p, trained), p) for p in pictures], bad

    def settings(self) -> dict[str, Any]:
        pictures, bad, _ = self._captions
        described = hashlib.sha256()
        for name, value in [*((str(p.captions.name), p.sha256) for p in pictures), *((n, str(e)) for n, e in bad)]:
            described.update(f"{name}\0{value}\n".encode())
        options = asdict(self._options)
        for name in ("flux", "clip", "dino"):  # where they lie does not matter, the entries say which they are
            del options[name]
        return {"options": options, "captions": described.hexdigest(), "encoders": self.entries}

    def check(self, item: RawItem) -> None:
        check_picture(self._raw, item.record, self._options)

    def files(self, item: RawItem) -> list[Path]:
        return [*super().files(item), *precomputed_files(self._raw, item.record, self._options)]

    def load(self) -> Encoders:
        from stagecoach.data.movie_post_production.encode import Encoders

        return Encoders(self._options)

    def prepare(self, item: RawItem) -> Prepared:
        return prepare_picture(self._raw, item.record, self._options, self._dims)

    def encode(self, items: list[RawItem], prepared: list[Prepared]) -> list[EncodedSample]:
        return self.models.encode([str(item.record.image) for item in items], prepared)

    def statistics(self) -> Statistics:
        return MovieStatistics(self._dims.latent, self._dims.dino)

    def summary(self, statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return {"dropped_objects": sum(split["dropped_objects"] for split in statistics.values())}

    def _split(self, picture: RawPicture, trained: set[str]) -> str | None:
        if picture.split or not self._options.seed_split:
            return picture.split
        return "train" if composed(picture.captions.name) in trained else "val"

    @cached_property
    def _captions(self) -> tuple[list[RawPicture], list[tuple[str, RawError]], list[str]]:
        return read_captions(self._raw, Boxes(self._options.box_format, self._options.box_units))

    @cached_property
    def entries(self) -> dict[str, EncoderEntry]:
        from stagecoach.data.movie_post_production.encode import describe_encoders

        return describe_encoders(self._raw, self._options)
