"""The families that shards can be built for, by name.

A builder is what ``launch/build_shards.py`` asks of a family. Adding one is a module with a ``Builder`` and a line in
``BUILDERS``.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from argparse import ArgumentParser, Namespace
from typing import Any

import numpy as np

from stagecoach.data.building.jobs import BuildJob, EncodedSample, Statistics
from stagecoach.data.progress import Track
from stagecoach.data.streaming.dataset import Sample

BUILDERS = {
    "fantasy_world": "stagecoach.data.fantasy_world.builder",
    "movie_post_production": "stagecoach.data.movie_post_production.builder",
    "dance_with_music": "stagecoach.data.dance_with_music.builder",
}
"""Family (also the name of its sample schema) -> module with a class ``FamilyBuilder``, imported when it is used: a
builder needs video, audio and encoder packages that reading shards does not."""


class Builder(ABC):
    """Raw data to shards for one family. Results are what JSON can hold."""

    @abstractmethod
    def add_build_arguments(self, parser: ArgumentParser) -> None:
        """Options of ``build`` besides those of all families (``data.commands``)."""

    @abstractmethod
    def job(self, arguments: Namespace) -> BuildJob:
        """What to make of ``arguments.input``."""

    @abstractmethod
    def add_synthesize_arguments(self, parser: ArgumentParser) -> None:
        """Options of ``synthesize`` besides ``--output``, ``--clips`` and ``--seed``."""

    @abstractmethod
    def synthesize(self, arguments: Namespace, track: Track) -> dict[str, Any]:
        """Write a small raw data set to ``arguments.output`` that ``build`` can use, and say what it holds."""

    @abstractmethod
    def picture(self, sample: Sample) -> np.ndarray:
        """What a sample looks like, uint8 [h, w, 3]."""

    def count(self, statistics: Statistics | None, sample: EncodedSample) -> Statistics | None:
        """``statistics`` (None: new ones) with a sample of unknown origin added, whose ``counted`` is not known: for
        sets that are indexed rather than built. A family that counts nothing, or nothing that its arrays tell, leaves
        this as it is."""
        return None


def builder(family: str) -> Builder:
    """The builder of a family. Raises ``ValueError`` naming those there are."""
    if family not in BUILDERS:
        raise ValueError(f"no shards can be built for family {family!r}, expected one of {sorted(BUILDERS)}")
    return importlib.import_module(BUILDERS[family]).FamilyBuilder()
