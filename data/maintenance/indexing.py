"""Adopting tars that another's tool wrote: an index next to each and a manifest make them a set of shards.

The tars themselves are not touched. Their samples are named ``<key>.<field>.npy`` (pictures ``.jpg``, ``.jpeg`` or
``.png``), as ``webdataset.ShardWriter`` writes a dictionary with such names; keys may hold folders.
"""

import importlib
import inspect as signatures
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.files import MANIFEST, atomic_file
from stagecoach.data.format.schema import SampleSchema
from stagecoach.data.format.shards import ShardEntry, index_shard, read_manifest, write_manifest
from stagecoach.data.format.tar_walk import PassedOver
from stagecoach.data.local_files import DamagedError, UnreachableError
from stagecoach.data.maintenance.check import REST, built_schema, find_sets, list_tars
from stagecoach.data.maintenance.latent_scale import LatentSums, check_latent_scale
from stagecoach.data.maintenance.parallel import map_shards
from stagecoach.data.maintenance.recompute_statistics import Counted, RecomputedStatistics, merge
from stagecoach.data.maintenance.scan import first_has_head, scan_tar
from stagecoach.data.progress import Track, untracked
from stagecoach.data.streaming.dataset import ShardSet

log = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"


def family_schema(family: str, sizes: Sequence[str] = ()) -> SampleSchema:
    """The schema of a family, from the one function ``*_schema(name=value, ...)`` of ``data/<family>/schema.py``.
    ``sizes`` are words ``name=value``; what is not named has that function's default, the size that is published.

    Raises ``ValueError`` naming the sizes there are.
    """
    module = importlib.import_module(f"stagecoach.data.{family}.schema")
    (make,) = (
        value
        for name, value in vars(module).items()
        if name.endswith("_schema") and signatures.isfunction(value) and value.__module__ == module.__name__
    )
    found = {name: parameter.default for name, parameter in signatures.signature(make).parameters.items()}
    defaults = {name: default for name, default in found.items() if isinstance(default, int)}
    given: dict[str, int | bool] = {}
    for word in sizes:
        name, _, text = word.partition("=")
        known = ", ".join(f"{name}={default}" for name, default in defaults.items())
        if name not in defaults:
            raise ValueError(f"--size {word}: {family} has no size of that name, expected some of {known}")
        if isinstance(defaults[name], bool):
            if text.lower() not in ("true", "false"):
                raise ValueError(f"--size {word}: expected {name}=true or {name}=false")
            given[name] = text.lower() == "true"
        elif isinstance(defaults[name], int) and text.isdecimal():
            given[name] = int(text)
        else:
            raise ValueError(f"--size {word}: expected a whole number, as in {known}")
    return make(**given)


def schema_of(directory: Path) -> SampleSchema:
    """The schema that the shards in ``directory`` (or in a split below it) were built for."""
    return built_schema(read_manifest(next(iter(find_sets(directory).values()))))


def index_folder(
    folder: Path,
    schema: SampleSchema,
    *,
    skip_bad: bool = False,
    replace: bool = False,
    any_latent_scale: bool = False,
    jobs: int | None = None,
    track: Track = untracked,
) -> dict[str, dict[str, Any]]:
    """Index all tars of ``folder``, or of each folder in it (train, val), against ``schema``. By split: samples, shards
    and bytes, how many samples were left out, and what was passed over (links, names that no field takes, tars with
    another ending), which a warning names, too.

    Every sample is decoded once, and counted as its family counts (``Builder.count``). With ``skip_bad`` those that do
    not fit, and those whose key came before, are left out of the index and listed in ``skipped.jsonl``; otherwise the
    first is an error. The manifest is written last; it names no encoders. What is indexed already is left as it is
    unless ``replace``. Latents of another size than networks take are refused unless ``any_latent_scale``. Raises
    ``DamagedError`` naming the tar, ``UnreachableError`` where its storage gives no answer.
    """
    return {
        name: _index_set(path, schema, skip_bad, replace, any_latent_scale, jobs, track)
        for name, path in find_sets(folder).items()
    }


@dataclass(frozen=True)
class _Task:
    directory: Path
    name: str
    schema: SampleSchema
    heads: bool
    skip_bad: bool
    without: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Indexed:
    entry: ShardEntry
    keys: list[str]
    skipped: dict[str, str]
    counted: Counted
    passed_over: PassedOver
    latents: LatentSums


def _index_set(
    path: Path,
    schema: SampleSchema,
    skip_bad: bool,
    replace: bool,
    any_latent_scale: bool,
    jobs: int | None,
    track: Track,
) -> dict[str, Any]:
    tars = list_tars(path)
    if not tars:
        raise DamagedError(f"{path}: holds no tar, expected those to be indexed; give the folder of the tars")
    if (path / MANIFEST).exists():
        if not replace:
            return _indexed_before(path, schema, tars)
        _refuse_built(path)
        (path / MANIFEST).unlink()  # while indices change, nothing says that they are finished
    heads = first_has_head(path / tars[0])
    tasks = [_Task(path, name, schema, heads, skip_bad) for name in tars]
    size = sum((path / name).stat().st_size for name in tars)
    found = {
        done.entry["name"]: done
        for done in map_shards(_index_tar, tasks, jobs=jobs, size=size, title=f"indexing {path.name}", track=track)
    }
    doubles: dict[str, set[str]] = {}
    seen: dict[str, str] = {}
    for name, done in found.items():
        for key in done.keys:
            if seen.setdefault(key, name) != name:
                if not skip_bad:
                    raise DamagedError(
                        f"{path / name}: sample {key!r} is also in {seen[key]}, expected each key once; "
                        f"write the tars again, or leave it out with --skip-bad"
                    )
                doubles.setdefault(name, set()).add(key)
    again = [_Task(path, name, schema, heads, skip_bad, frozenset(keys)) for name, keys in doubles.items()]
    for done in map_shards(_index_tar, again, jobs=jobs, size=size, title="leaving out doubles", track=track):
        found[done.entry["name"]] = done
    lines = [
        {"shard": name, "key": key, "reason": reason}
        for name, done in found.items()
        for key, reason in done.skipped.items()
    ]
    if lines:
        with atomic_file(path / SKIPPED, "w") as handle:
            handle.writelines(json.dumps(line) + "\n" for line in lines)
    else:
        (path / SKIPPED).unlink(missing_ok=True)
    passed_over = PassedOver()
    for other in sorted(path.iterdir()):
        if ".tar" in other.name.lower() and other.name not in tars and other.name[0] != "." and other.suffix != ".idx":
            passed_over.add("files that are no uncompressed .tar", other.name)
    for name, done in found.items():
        for kind, (count, first) in done.passed_over.items():
            passed_over.add(kind, f"{name}: {first}", count)
    if passed_over:
        log.warning("%s: passed over %s", path, passed_over)
    if not any_latent_scale:
        check_latent_scale([done.latents for done in found.values()], schema, path)
    counted = merge([done.counted for done in found.values()])
    manifest = write_manifest(
        path, schema, [done.entry for done in found.values()], {}, counted.values or {}, heads=heads
    )
    return {
        "action": "indexed",
        **_counts(manifest.shards),
        "heads": heads,
        "skipped": len(lines),
        "passed_over": str(passed_over),
        "statistics": counted.problem and f"none: {counted.problem}",
    }


def _index_tar(task: _Task) -> _Indexed:
    path = task.directory / task.name
    recomputed, latents = RecomputedStatistics(task.schema.name, task.without), LatentSums()

    def take(key: str, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        recomputed.take(key, arrays, meta)
        latents.take(arrays)

    scan = scan_tar(path, task.schema, task.heads, take)
    if scan.error and not (task.skip_bad and scan.rows):
        also = "; --skip-bad takes the samples before that" if scan.rows else ""
        raise DamagedError(f"{scan.error}{also}")
    skipped = {
        **scan.bad,
        **({REST: scan.error} if scan.error else {}),
        **{key: f"{path}: sample {key!r} is in an earlier tar, too" for key in task.without},
    }
    if scan.bad and not task.skip_bad:
        first = next(iter(scan.bad.values()))
        more = f" (and {len(scan.bad) - 1} more of this tar)" if len(scan.bad) > 1 else ""
        raise DamagedError(f"{first}{more}, or leave them out with --skip-bad")
    rows = [row for row in scan.rows if row["key"] not in skipped]
    if not rows:
        raise DamagedError(
            f"{path}: none of its {len(scan.rows)} samples can be used, expected at least one; move "
            f"the tar elsewhere{': ' + next(iter(skipped.values())) if skipped else ''}"
        )
    entry = index_shard(path, task.schema.dims, scan.bytes, scan.sha256, rows, skipped)
    return _Indexed(entry, [row["key"] for row in rows], skipped, recomputed.result(), scan.passed_over, latents)


def _indexed_before(path: Path, schema: SampleSchema, tars: list[str]) -> dict[str, Any]:
    """What is here already, if it is what would be made; sizes and indices are compared, the tars not read again."""
    again = "give --replace to index the folder again"
    try:
        shards = ShardSet.open(path, schema)
    except UnreachableError:
        raise
    except ValueError as error:
        raise DamagedError(f"{error}; or {again}") from error
    listed = [entry["name"] for entry in shards.manifest.shards]
    if listed != tars:
        differing = sorted(set(listed) ^ set(tars))
        raise DamagedError(
            f"{path / MANIFEST}: lists {len(listed)} tars where the folder holds {len(tars)}, expected "
            f"the same ({', '.join(differing[:3])} differ); {again}"
        )
    return {"action": "indexed before", **_counts(shards.manifest.shards), "heads": shards.manifest.heads}


def _refuse_built(path: Path) -> None:
    """What ``build`` knows of a set is not in its tars; it would be lost."""
    try:
        manifest = read_manifest(path)
    except DamagedError:
        return
    if manifest.encoders:
        raise DamagedError(
            f"{path / MANIFEST}: was written by a build and names its encoders, which an index of the "
            f"tars alone would lose; use build_shards.py repair"
        )


def _counts(shards: Sequence[ShardEntry]) -> dict[str, int]:
    return {
        "samples": sum(entry["samples"] for entry in shards),
        "shards": len(shards),
        "bytes": sum(entry["bytes"] for entry in shards),
    }
