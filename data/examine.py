"""Looking at finished shards: are they whole, what is in them, what does it look like."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data.builders import builder
from data.dataset import ShardSet, verify_shards
from data.files import MANIFEST, DamagedError
from data.pictures import sheet
from data.schema import Field, SampleSchema
from data.shards import Manifest, index_path, read_manifest


def splits(directory: Path) -> dict[str, Path]:
    """The shard sets in ``directory``: its ``train``, ``val`` and the like, or itself.

    Raises ``DamagedError`` where there is none.
    """
    if (directory / MANIFEST).is_file():
        return {directory.resolve().name: directory}
    found = {}
    if directory.is_dir():
        found = {p.name: p for p in sorted(directory.iterdir()) if (p / MANIFEST).is_file() and p.name[0] != "."}
    if not found:
        raise DamagedError(f"{directory}: no shards found, expected {MANIFEST} in it or in a folder below it (train, "
                           f"val); an interrupted build leaves none, run it again")
    return found


def built_schema(manifest: Manifest) -> SampleSchema:
    """The schema that the shards of a manifest were built for."""
    fields = tuple(Field(**{**field, "shape": tuple(field["shape"])}) for field in manifest.schema["fields"])
    return SampleSchema(manifest.schema["name"], manifest.schema["version"], fields)


def check(directory: Path) -> list[str]:
    """All that is wrong with the shards in ``directory``: hashes, indices, then every sample against the schema."""
    problems = []
    for path in splits(directory).values():
        try:
            schema = built_schema(read_manifest(path))
        except DamagedError as error:
            problems.append(str(error))
            continue
        found = verify_shards(path, schema)
        problems += found
        if not found:
            problems += _check_samples(ShardSet.open(path, schema))
    return problems


def _check_samples(shards: ShardSet) -> list[str]:
    problems = []
    for index in range(len(shards)):
        try:
            shards.read(index)
        except ValueError as error:
            problems.append(str(error))
    return problems


def inspect(directory: Path) -> dict[str, dict[str, Any]]:
    """By split: schema, counts, bytes by field, encoders and fingerprint."""
    return {name: _inspect(path) for name, path in splits(directory).items()}


def _inspect(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    sizes: Counter[str] = Counter()
    for shard in manifest.shards:
        for sample in json.loads(index_path(path / shard["name"]).read_text())["samples"]:
            for member, (_, size, _) in sample["members"].items():
                sizes[member.partition(".")[0]] += size
    return {"schema": manifest.schema["name"], "version": manifest.schema["version"],
            "samples": sum(shard["samples"] for shard in manifest.shards), "shards": len(manifest.shards),
            "bytes": sum(shard["bytes"] for shard in manifest.shards), "field_bytes": dict(sorted(sizes.items())),
            "encoders": manifest.encoders, "fingerprint": manifest.fingerprint}


def contact_sheet(directory: Path, count: int, columns: int = 2) -> np.ndarray:
    """Pictures of up to ``count`` samples, spread evenly over the splits, uint8 [h, w, 3]."""
    sets = []
    for path in splits(directory).values():
        manifest = read_manifest(path)
        sets.append((ShardSet.open(path, built_schema(manifest)), builder(manifest.schema["name"])))
    places = [(shards, family, index) for shards, family in sets for index in range(len(shards))]
    chosen = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
    return sheet([family.picture(shards.read(index)) for shards, family, index in (places[i] for i in chosen)], columns)
