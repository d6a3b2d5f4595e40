"""The statistics of samples that nobody counted when they were made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stagecoach.data.builders import BUILDERS, builder
from stagecoach.data.building.jobs import EncodedSample, Statistics
from stagecoach.data.reading import not_finite


@dataclass(frozen=True)
class Counted:
    """``values``: as ``Statistics.as_dict``, None of no sample or of a family that counts nothing. ``problem``: why
    there are none, else empty."""

    values: dict[str, Any] | None
    problem: str


class RecomputedStatistics:
    """Adds samples one by one as their family counts them (``Builder.count``), but for those whose keys are given."""

    def __init__(self, family: str, without: frozenset[str]) -> None:
        self._family, self._without = family, without
        self._statistics: Statistics | None = None
        self._problem = "" if family in BUILDERS else f"no family {family!r} is known here"

    def take(self, key: str, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        if self._problem or key in self._without:
            return
        try:
            self._statistics = builder(self._family).count(self._statistics, EncodedSample(arrays, meta))
        except (ValueError, ImportError) as error:  # of other sizes than those before; a package is missing
            self._problem = f"sample {key!r}: {error}"

    def result(self) -> Counted:
        if self._problem or self._statistics is None:
            return Counted(None, self._problem)
        values = self._statistics.as_dict()
        bad = not_finite(values)
        return Counted(None, f"the sum {bad!r} of its samples is not finite") if bad else Counted(values, "")


def merge(parts: Sequence[Counted]) -> Counted:
    """The sum of the parts, which is none where one has none."""
    problem = next((part.problem for part in parts if part.problem), "")
    values = [part.values for part in parts if part.values is not None]
    if problem or not values:
        return Counted(None, problem)
    try:
        return Counted(Statistics.merge(values), "")
    except ValueError as error:
        return Counted(None, str(error))
