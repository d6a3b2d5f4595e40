"""What the shard builder asks of a family: items of a raw data set, how one is read, how several are encoded.

``data.building.build.build`` runs a job in one process or in many; the job itself knows nothing of parts, workers or
restarts. Its samples depend on the items and on ``settings`` alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.format.schema import SampleSchema


class RawError(ValueError):
    """A raw file is missing, unreadable or not as documented. The message names the file."""


@dataclass(frozen=True)
class RawItem:
    """One input of a build, which becomes one sample.

    ``key`` is the sample key (no dot, slash or blank; unique). ``split`` is what the raw data set says (``train``,
    ``val``, ...), else None: then the builder draws it by a hash of the key (``--holdout``). ``record`` is what the
    family needs to read it, and can be pickled. Items of one ``group`` (None: of their own), such as clips of one
    video, are drawn into one split.
    """

    key: str
    split: str | None
    record: Any
    group: str | None = None


@dataclass
class EncodedSample:
    """``arrays``, ``meta`` as ``ShardWriter.add`` takes them; ``counted`` is what ``Statistics.add`` needs besides."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    counted: Any = None


class Statistics(ABC):
    """Sums and counts over samples, so that those of parts are merged by adding."""

    @abstractmethod
    def add(self, sample: EncodedSample) -> None:
        """Count one sample."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """By name a number or a nested list of numbers; the same names and lengths for any samples."""

    @staticmethod
    def merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The sums of ``as_dict`` of several parts, added in the order given; of no part, nothing.

        Raises ``ValueError`` for parts with different names or lengths.
        """
        merged: dict[str, Any] = dict(parts[0]) if parts else {}
        for part in parts[1:]:
            if set(part) != set(merged):
                raise ValueError(
                    f"statistics of two parts have names {sorted(merged)} and {sorted(part)}, expected "
                    f"the same; they are of different builds"
                )
            merged = {name: _sum(value, part[name], name) for name, value in merged.items()}
        return merged


def _sum(one: Any, other: Any, name: str) -> Any:
    if not isinstance(one, list):
        return one + other
    if not isinstance(other, list) or len(one) != len(other):
        raise ValueError(
            f"statistics {name!r} of two parts have different lengths, expected the same; they are of different builds"
        )
    return [_sum(a, b, name) for a, b in zip(one, other, strict=True)]


class SumStatistics(Statistics):
    """Sums by name, from the given zeros on (numbers and arrays)."""

    def __init__(self, **zeros: Any) -> None:
        self._sums = zeros

    @abstractmethod
    def count(self, sample: EncodedSample) -> dict[str, Any]:
        """What a sample adds to each sum."""

    def add(self, sample: EncodedSample) -> None:
        for name, value in self.count(sample).items():
            self._sums[name] = self._sums[name] + value

    def as_dict(self) -> dict[str, Any]:
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in self._sums.items()}


class NoStatistics(Statistics):
    """For a family that counts nothing."""

    def add(self, sample: EncodedSample) -> None:
        pass

    def as_dict(self) -> dict[str, Any]:
        return {}


class BuildJob(ABC):
    """What the builder asks of a family for one build.

    The output depends on the items and on ``settings`` only, not on workers or their number. Until ``start`` a job can
    be pickled: local workers get a copy.
    """

    schema: SampleSchema
    """Known before encoders are loaded (their ``config.json`` tells the sizes)."""
    part_items: int
    """Items per part, so that a part makes about one full shard of 1 GB. A part is a run of neighbouring items of one
    split, the unit of work and of restart."""
    together: int
    """Items that are encoded at once, inside a part. Twice as many are read ahead."""
    on_device: bool = True
    """Whether ``start`` loads anything onto a GPU; False spares the workers the import of torch."""

    @abstractmethod
    def items(self) -> tuple[list[RawItem], list[tuple[str, RawError]]]:
        """The items in an order that is always the same, and (name, error) of entries that cannot be used.

        Raises ``RawError`` where the raw data set as a whole cannot be read.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that the samples depend on, as JSON: options, a hash of the metadata, encoder entries. A build that is
        started again goes on only if they are equal. Called before ``start``."""

    @abstractmethod
    def check(self, item: RawItem) -> None:
        """A cheap look at an item before any encoder is loaded; runs in threads. Raises ``RawError``."""

    def files(self, item: RawItem) -> list[Path]:
        """The files and folders that the sample is made of, there or not, besides what ``settings`` tells the content
        of: by default all paths in the record. A part is made again where they have changed since (``item_files``)."""
        return list(dict.fromkeys(_paths(item.record)))

    @abstractmethod
    def start(self) -> None:
        """Load the encoders, with the imports that take seconds. The current CUDA device is this worker's."""

    @abstractmethod
    def encoders(self) -> Mapping[str, Any]:
        """For the manifest, by role: name, path_name, sha256, dtype (``EncoderEntry``). Called after ``start``."""

    @abstractmethod
    def prepare(self, item: RawItem) -> Any:
        """Read an item: the part that needs no device; runs in threads. Raises ``RawError``."""

    @abstractmethod
    def encode(self, items: list[RawItem], prepared: list[Any]) -> list[EncodedSample]:
        """The samples of at most ``together`` items, encoded as one batch, in the same order."""

    @abstractmethod
    def statistics(self) -> Statistics:
        """A fresh, empty accumulator, for one part."""

    def summary(self, statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """What the report of a finished build says besides samples and bytes, from the statistics by split."""
        return {}


def _paths(record: Any) -> Iterator[Path]:
    if isinstance(record, Path):
        yield record
    elif is_dataclass(record):
        for field in fields(record):
            yield from _paths(getattr(record, field.name))
    elif isinstance(record, list | tuple):
        for value in record:
            yield from _paths(value)


class EncodingJob(BuildJob):
    """A job whose encoders are files, described (``entries``) before they are loaded. Counts nothing by itself.

    ``models`` is what ``load`` returned, None before ``start``.
    """

    together = 8
    models: Any = None
    annotators: Mapping[str, Any] = {}
    """The models that made a part of the raw data (``data.annotation.run.annotators``), for the manifest."""

    @property
    @abstractmethod
    def entries(self) -> Mapping[str, Any]:
        """By role the ``EncoderEntry`` of each encoder, without loading it; a cached property."""

    @abstractmethod
    def load(self) -> Any:
        """Load the encoders onto the current device."""

    def start(self) -> None:
        self.models = self.load()

    def encoders(self) -> Mapping[str, Any]:
        return {**self.entries, **self.annotators}

    def check(self, item: RawItem) -> None:
        pass

    def statistics(self) -> Statistics:
        return NoStatistics()


def items_per_part(sample_bytes: float, part_bytes: float = 10**9, most: int | None = None) -> int:
    """Items of about ``sample_bytes`` that make about a full shard: at least 1, at most ``most``."""
    items = max(int(part_bytes // sample_bytes), 1)
    return min(items, most) if most else items
