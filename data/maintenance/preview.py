"""What finished shards look like."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stagecoach.data.builders import builder
from stagecoach.data.files import MANIFEST, DamagedError
from stagecoach.data.format.shards import read_manifest
from stagecoach.data.maintenance.check import built_schema, check
from stagecoach.data.maintenance.inspect import inspect
from stagecoach.data.pictures import sheet
from stagecoach.data.streaming.dataset import ShardSet

__all__ = ["check", "contact_sheet", "inspect", "splits"]


def splits(directory: Path) -> dict[str, Path]:
    """The finished shard sets in ``directory``: its ``train``, ``val`` and the like, or itself.

    Raises ``DamagedError`` where there is none.
    """
    if (directory / MANIFEST).is_file():
        return {directory.resolve().name: directory}
    found = {}
    if directory.is_dir():
        found = {p.name: p for p in sorted(directory.iterdir()) if (p / MANIFEST).is_file() and p.name[0] != "."}
    if not found:
        raise DamagedError(
            f"{directory}: no shards found, expected {MANIFEST} in it or in a folder below it (train, "
            f"val); an interrupted build leaves none, run it again"
        )
    return found


def contact_sheet(directory: Path, count: int, columns: int = 2) -> np.ndarray:
    """Pictures of up to ``count`` samples, spread evenly over the splits, uint8 [h, w, 3]."""
    sets = []
    for path in splits(directory).values():
        manifest = read_manifest(path)
        sets.append((ShardSet.open(path, built_schema(manifest)), builder(manifest.schema["name"])))
    places = [(shards, family, index) for shards, family in sets for index in range(len(shards))]
    chosen = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
    return sheet([family.picture(shards.read(index)) for shards, family, index in (places[i] for i in chosen)], columns)
