"""Where the truth of generated samples comes from: files by name, a list of them, or shards."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from stagecoach.data.building.raw_files import read_bytes
from stagecoach.data.files import MANIFEST
from stagecoach.data.format.shards import read_manifest
from stagecoach.data.maintenance.check import built_schema
from stagecoach.data.paths import expand_path
from stagecoach.data.reading import parse_json
from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.models import get_family
from stagecoach.models.metrics.reading import FILES, asked, find_samples, read_files, read_sample
from stagecoach.models.metrics.record import Record

Truth = Callable[[str], Record | None]
"""The true sample of a name; None where there is none. Raises ``ValueError`` where it is damaged."""
KEYS = {
    "video": "frames",
    "picture": "frames",
    "beats": "beat",
    "estimated_pose": "estimated",
    "cameras_given": "given",
}
"""What a line of a list may name besides the fields of ``FILES``."""


def open_truth(path: Path | None) -> Truth:
    """Of nothing, a .jsonl file, shards (a split, or the folder of train and val: val), or a folder of samples. Raises
    ``ValueError``."""
    if path is None:
        return lambda name: None
    if path.suffix == ".jsonl":
        return _listed(path)
    for folder in (path / "val", path):
        if (folder / MANIFEST).is_file():
            return _of_shards(folder)
    found = find_samples(path)
    return lambda name: read_sample(name, found[name]) if name in found else None


def _listed(path: Path) -> Truth:
    entries: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(read_bytes(path, "a list of true samples").splitlines(), 1):
        if line.strip():
            entry = parse_json(line, dict[str, Any], f"{path}: line {number}")
            if not isinstance(entry.get("id"), str) or entry["id"] in entries:
                raise ValueError(
                    f"{path}: line {number}: id is {entry.get('id')!r}, expected a text, another in each line"
                )
            words = {"id", "prompt", "global_caption", "objects", "annos", "width", "height", "seed"}
            unknown = sorted(set(entry) - words - set(FILES) - set(KEYS))
            if unknown:
                known = ", ".join(sorted({*FILES, *KEYS, "prompt", "objects"}))
                raise ValueError(f"{path}: line {number}: {unknown[0]!r} is unknown, expected some of {known}")
            entries[entry["id"]] = entry

    def truth(name: str) -> Record | None:
        entry = entries.get(name)
        if entry is None:
            return None
        files = {
            KEYS.get(key, key): path.parent / expand_path(str(value))
            for key, value in entry.items()
            if KEYS.get(key, key) in FILES
        }
        return replace(read_files(name, files), **asked(entry, path.parent))

    return truth


def _of_shards(folder: Path) -> Truth:
    manifest = read_manifest(folder)
    schema = built_schema(manifest)
    family, shards = get_family(schema.name), ShardSet.open(folder, schema)
    indices = {shards.name(index)[1]: index for index in range(len(shards))}

    def truth(name: str) -> Record | None:
        if name not in indices:
            return None
        sample = shards.read(indices[name])
        return replace(family.record(sample.arrays), name=name)

    return truth
