"""The families that shards can be built for, by name.

A builder is what ``launch/build_shards.py`` asks of a family. Adding one is a module with a ``Builder`` and a line in
``BUILDERS``.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.annotation.job import AnnotateJob
from stagecoach.data.building.jobs import BuildJob, EncodedSample, Statistics
from stagecoach.data.streaming.dataset import Sample
from stagecoach.data.synthetic import Steps

BUILDERS = {
    "fantasy_world": "stagecoach.data.fantasy_world.builder",
    "movie_post_production": "stagecoach.data.movie_post_production.builder",
    "dance_with_music": "stagecoach.data.dance_with_music.builder",
    "stable_diffusion_3": "stagecoach.data.stable_diffusion_3.builder",
}
"""Family (also the name of its sample schema) -> module with a class ``FamilyBuilder``, imported when it is used: a
builder needs video, audio and encoder packages that reading shards does not."""


class Builder(ABC):
    """Raw data to shards for one family: which options there are, and which functions do the work."""

    options: Sequence[type] = ()
    """Dataclasses of ``build``'s options (``data.building.options``), which ``make_job`` takes in this order."""
    annotate_options: Sequence[type] = ()
    """Dataclasses of ``annotate``'s options, as ``options``."""
    synthetic_options: type | None = None
    """Dataclass of ``synthesize``'s options besides ``--output``, ``--clips``, ``--seed`` and ``--encoders``."""
    items = "clips"
    """What the raw data consists of, for the report of ``synthesize``."""
    tiny_encoders = ""
    """What ``write_encoders`` writes below its folder, for people; empty where there is no such function."""

    @abstractmethod
    def make_job(self, raw: Path, *options: Any) -> BuildJob:
        """What to make of the raw data set ``raw``."""

    def make_annotate_job(self, raw: Path, output: Path, *options: Any) -> AnnotateJob:
        """What to find out about the raw data in ``raw``, for a raw data set in ``output``."""
        raise ValueError("nothing can be annotated for this family, expected raw data that are whole")

    @abstractmethod
    def write_raw(self, output: Path, count: int, seed: int, options: Any, steps: Steps) -> None:
        """Write a small synthetic raw data set of ``count`` items that ``build`` can use."""

    def write_encoders(self, raw: Path, directory: Path, seed: int) -> None:
        """Write tiny encoders, fitted to the synthetic raw data set ``raw``."""
        raise ValueError("there are no tiny encoders of this family; give real ones to build")

    @abstractmethod
    def picture(self, sample: Sample) -> np.ndarray:
        """What a sample looks like, uint8 [h, w, 3]."""

    def count(self, statistics: Statistics | None, sample: EncodedSample) -> Statistics | None:
        """``statistics`` (None: new ones) with a sample of unknown origin added, whose ``counted`` is not known: for
        sets that are indexed rather than built. A family that counts nothing, or nothing that its arrays tell, leaves
        this as it is."""
        return None

    def describe(self, statistics: Mapping[str, Any]) -> dict[str, Any]:
        """What the statistics of a split say of the data, by name, for people; nothing by default."""
        return {}


def builder(family: str) -> Builder:
    """The builder of a family. Raises ``ValueError`` naming those there are."""
    if family not in BUILDERS:
        raise ValueError(f"no shards can be built for family {family!r}, expected one of {sorted(BUILDERS)}")
    return importlib.import_module(BUILDERS[family]).FamilyBuilder()


def describe_statistics(family: str, statistics: Mapping[str, Any] | None) -> dict[str, Any]:
    """As ``Builder.describe``; nothing of a family that is not known here or whose packages are missing."""
    try:
        return builder(family).describe(statistics) if family in BUILDERS and statistics else {}
    except ImportError:
        return {}
