"""What annotating asks of a family: which items there are, what each lacks, and the files that are written for one.

``run.annotate`` does it in one process or in many; a job knows nothing of workers or restarts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Unannotated:
    """One input. ``key`` names it and the files made of it: letters, digits, - and _; unique. ``sources``: the files it
    is made of, after a change of which it is annotated again. ``record``: what the family needs; can be pickled."""

    key: str
    sources: Sequence[Path]
    record: Any = None


@dataclass
class Annotated:
    """What was found for one item: ``files`` written, relative to the output, and what the family's metadata get."""

    files: list[str] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)


class AnnotateJob(ABC):
    """Can be pickled until ``start``. What it writes depends on the items and on ``settings`` alone."""

    output: Path

    @abstractmethod
    def items(self) -> list[Unannotated]:
        """In an order that is always the same. Raises ``RawError`` where there is none."""

    @abstractmethod
    def models(self) -> Mapping[str, Mapping[str, Any]]:
        """By role what manifests say of each model, without loading it. Raises ``EncoderError`` for a missing path."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All else that results depend on, as JSON."""

    @abstractmethod
    def start(self) -> None:
        """Load the models."""

    @abstractmethod
    def targets(self, item: Unannotated) -> list[str]:
        """Files and folders, relative to the output, that may be written for an item: what is there before it is begun
        is ``given``, and all else is removed before it is begun again."""

    @abstractmethod
    def annotate(self, item: Unannotated, given: frozenset[str]) -> Annotated:
        """Write the targets of an item that are not ``given``. Raises ``RawError``: the item is left out."""

    def finish(self, found: Mapping[str, Annotated]) -> None:  # noqa: B027 (most families have no metadata)
        """Write the metadata of all items; repeatable."""

    @abstractmethod
    def preview(self, item: Unannotated) -> np.ndarray | None:
        """What was found, drawn over its frames, uint8 [h, w, 3]; None where there is nothing."""
