"""What a tar really holds: each sample found by its headers, checked, decoded against the schema."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.format.decode import decode_sample, has_head, member_names
from stagecoach.data.format.index import Row
from stagecoach.data.format.schema import SampleSchema, sample_sizes
from stagecoach.data.format.tar_walk import PassedOver, TarSample, TarWalk
from stagecoach.data.local_files import DamagedError

Take = Callable[[str, dict[str, np.ndarray], dict[str, Any]], None]
"""Given key, arrays and meta of a sample."""


@dataclass
class TarScan:
    """``rows``: as an index has them, in the order of the tar, of all samples that could be reached. ``bad``: key ->
    why this sample does not fit the schema (``sizes`` of its row is None). ``error``: why the walk ended early.
    ``passed_over``: what of the tar is in no field of a sample."""

    bytes: int = 0
    sha256: str = ""
    error: str | None = None
    rows: list[Row] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    passed_over: PassedOver = field(default_factory=PassedOver)


def scan_tar(path: Path, schema: SampleSchema, heads: bool, take: Take | None = None) -> TarScan:
    """Read a tar once, from end to end, holding one sample at a time; ``take`` is given each that fits the schema.
    Damage is reported, not raised; where the storage gives no answer ``UnreachableError`` is."""
    found = TarScan()
    try:
        with TarWalk(path) as walk:
            found.bytes = walk.bytes
            try:
                for sample in walk:
                    validate_sample(found, sample, path, schema, heads, take)
            except DamagedError as error:
                found.error = str(error)
            found.passed_over.add_all(walk.passed_over)
            found.sha256 = walk.digest()
    except DamagedError as error:
        found.error = str(error)
    return found


def validate_sample(
    found: TarScan, sample: TarSample, path: Path, schema: SampleSchema, heads: bool, take: Take | None
) -> None:
    row: Row = {"key": sample.key, "sizes": None, "members": sample.extents()}
    found.rows.append(row)
    for name in set(sample.members) - {"json", *(name for spec in schema.fields for name in member_names(spec))}:
        found.passed_over.add(f"members {name!r} that no field takes", f"{sample.key}.{name}")
    if problem := _misread(sample, schema):
        found.bad[sample.key] = f"{path}: sample {sample.key!r}: {problem}"
        return
    try:
        data = {name: memoryview(data) for name, (_, data) in sample.members.items()}
        arrays, meta = decode_sample(schema, data, f"{path}: sample {sample.key!r}", heads)
    except ValueError as error:
        found.bad[sample.key] = str(error)
        return
    row["sizes"] = sample_sizes(schema, {name: array.shape for name, array in arrays.items()})
    if take is not None:
        take(sample.key, arrays, meta)


def _misread(sample: TarSample, schema: SampleSchema) -> str | None:
    """What tells that a sample is there but not as its members look."""
    known = [name for spec in schema.fields for name in member_names(spec)]
    if sample.links:
        name, target = next(iter(sample.links.items()))
        return (
            f"{name!r} is stored as a link to {target!r} without data of its own, as GNU tar stores a second name of a "
            "file, expected the data; write the tar with --hard-dereference and --dereference"
        )
    dotted = [name for name in sample.members if name not in known and name.endswith(tuple(f".{end}" for end in known))]
    if dotted and not any(name in sample.members for name in known):
        return (
            f"its members are called {dotted[0]!r}, as of a key with a dot in it, expected the key to end at the first "
            "dot; write the tar again with '_' in place of the dots in names"
        )
    return None


def first_has_head(path: Path) -> bool:
    """Whether the first sample of a tar begins as our writer begins them. Raises ``DamagedError`` as ``TarWalk``."""
    with TarWalk(path) as walk:
        first = next(iter(walk), None)
    return first is not None and "json" in first.members and has_head(first.members["json"][1])
