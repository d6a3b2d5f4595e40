"""MoviePostProduction's part of a build: pictures with captions and boxes become samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagecoach.data.building.jobs import BuildJob, EncodedSample, RawError, RawItem, Statistics
from stagecoach.data.movie_post_production.captions import RawPicture, read_captions
from stagecoach.data.movie_post_production.options import BuildOptions, Dims
from stagecoach.data.movie_post_production.prepare import Prepared, check_picture, prepare_picture
from stagecoach.data.movie_post_production.statistics import MovieStatistics

if TYPE_CHECKING:
    from stagecoach.data.encoding.encoders import EncoderEntry
    from stagecoach.data.movie_post_production.encode import Encoders

PART_BYTES = 10**9
TRAINED_PART = 0.9
"""Part of the caption files, by name, that the guide trains on."""


class MovieJob(BuildJob):
    """Items' records are ``RawPicture``. Raises ``EncoderError`` where an encoder's configuration cannot be read."""

    together = 8

    def __init__(self, raw: Path, options: BuildOptions) -> None:
        self._raw, self._options = raw, options
        self._dims = Dims.of(options)
        self.schema = self._dims.schema(options)
        self.part_items = max(PART_BYTES // self._dims.sample_bytes(options), 1)
        self._encoders: Encoders | None = None

    def items(self) -> tuple[list[RawItem], list[tuple[str, RawError]]]:
        pictures, bad, names = self._captions
        trained = set(names[: int(TRAINED_PART * len(names))])
        return [RawItem(p.key, self._split(p, trained), p) for p in pictures], bad

    def settings(self) -> dict[str, Any]:
        pictures, bad, _ = self._captions
        described = hashlib.sha256()
        for name, value in [*((str(p.captions.name), p.sha256) for p in pictures), *((n, str(e)) for n, e in bad)]:
            described.update(f"{name}\0{value}\n".encode())
        options = asdict(self._options)
        for name in ("flux", "clip", "dino"):  # where they lie does not matter, the entries say which they are
            del options[name]
        return {"options": options, "captions": described.hexdigest(), "encoders": self._entries}

    def check(self, item: RawItem) -> None:
        check_picture(self._raw, item.record, self._options)

    def start(self) -> None:
        from stagecoach.data.movie_post_production.encode import Encoders

        self._encoders = Encoders(self._options)

    def encoders(self) -> Mapping[str, EncoderEntry]:
        return self._entries

    def prepare(self, item: RawItem) -> Prepared:
        return prepare_picture(self._raw, item.record, self._options, self._dims)

    def encode(self, items: list[RawItem], prepared: list[Prepared]) -> list[EncodedSample]:
        return self._encoders.encode([str(item.record.image) for item in items], prepared)

    def statistics(self) -> Statistics:
        return MovieStatistics(self._dims.latent, self._dims.dino)

    def summary(self, statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return {"dropped_objects": sum(split["dropped_objects"] for split in statistics.values())}

    def _split(self, picture: RawPicture, trained: set[str]) -> str | None:
        if picture.split or not self._options.seed_split:
            return picture.split
        return "train" if picture.captions.name in trained else "val"

    @cached_property
    def _captions(self) -> tuple[list[RawPicture], list[tuple[str, RawError]], list[str]]:
        return read_captions(self._raw)

    @cached_property
    def _entries(self) -> dict[str, EncoderEntry]:
        from stagecoach.data.movie_post_production.encode import encoder_entries

        return encoder_entries(self._raw, self._options)
