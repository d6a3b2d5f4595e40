"""Making a damaged set of shards whole again: what is proven is kept, what is not is dropped and listed."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagecoach.data.files import MANIFEST, sha256_json
from stagecoach.data.format.decode import has_head
from stagecoach.data.format.schema import SampleSchema
from stagecoach.data.format.shards import ShardEntry, index_path, part_checksums, read_manifest, write_manifest
from stagecoach.data.format.tar_walk import TarWalk
from stagecoach.data.local_files import DamagedError, LocalFile, UnreachableError, is_file
from stagecoach.data.maintenance.check import (
    ShardReport,
    built_schema,
    check_shards,
    duplicates,
    find_sets,
    list_tars,
    schema_from,
)
from stagecoach.data.maintenance.parallel import map_shards
from stagecoach.data.maintenance.rebuild import change_folder, commit_change, finish_change, is_pending
from stagecoach.data.maintenance.repair_shard import Repaired, RepairTask, repair_shard
from stagecoach.data.progress import Track, untracked
from stagecoach.data.reading import fits
from stagecoach.data.stores.storage import LocalStorage

DROPPED = "dropped.jsonl"
ASIDE = "unlisted"
"""Folder for tars that no manifest lists: they were never part of a finished set, and may be somebody's."""


@dataclass
class Known:
    """What of a manifest is proven. ``problem`` says why the rest is not; ``entries`` is None where the list of shards
    is lost, and ``proven`` tells whether it is the one that was written."""

    schema: SampleSchema
    heads: bool
    entries: dict[str, ShardEntry]
    proven: bool
    encoders: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0
    lost: tuple[str, ...] = ()
    problem: str | None = None


def repair(
    directory: Path,
    *,
    dry_run: bool = False,
    schema_set: Path | None = None,
    jobs: int | None = None,
    track: Track = untracked,
) -> dict[str, dict[str, Any]]:
    """By split: how many samples are kept and dropped, what was done to which file. ``check`` finds nothing afterwards.

    A damaged manifest is made again from what its checksums prove, the tars and the indices; its schema may come from
    another split or from ``schema_set``, a folder of shards. Statistics and encoders that are not proven are empty
    afterwards, and the manifest says so. It is written last; killed at any moment, run it again.

    Raises ``DamagedError`` for a split of which no sample is proven or whose schema is lost, and ``UnreachableError``
    where the storage of a file gives no answer; nothing of the split is changed.
    """
    return {name: _repair_set(path, dry_run, schema_set, jobs, track) for name, path in find_sets(directory).items()}


def _repair_set(path: Path, dry_run: bool, schema_set: Path | None, jobs: int | None, track: Track) -> dict[str, Any]:
    finished = is_pending(path)
    if finished and dry_run:
        return {"action": "an interrupted repair would be finished first", "changed": True}
    if finished:
        finish_change(path)
    known = _known(path, schema_set)
    reports = []
    if known.proven:
        entries = list(known.entries.values())
        reports = check_shards(path, entries, known.schema, known.heads, jobs, track)
        if unreachable := [report.problems[0] for report in reports if report.unreachable]:
            raise UnreachableError(f"{unreachable[0]} (and {len(unreachable) - 1} more shards); nothing was changed")
        doubles = _doubles(path, reports)
        bad = {r.name: doubles.get(r.name, frozenset()) for r in reports if r.problems or r.name in doubles}
    else:
        bad = dict.fromkeys(sorted({*list_tars(path), *_missing(path, known)}), frozenset())
    aside = _unlisted(path, known)
    sources = _misnamed(path, known, reports, aside) if bad else {}
    if not bad and not aside and known.problem is None:
        return {"action": "finished an interrupted repair" if finished else "nothing to do", "changed": finished}
    if dry_run:
        repaired = _repair_shards(path, None, known, bad, sources, jobs, track)
        return {**_summary(path, known, reports, repaired, aside), "action": "to be repaired"}
    with change_folder(path) as folder:
        repaired = _repair_shards(path, folder, known, bad, sources, jobs, track)
        summary = _summary(path, known, reports, repaired, aside)
        if not summary["kept"]:
            raise DamagedError(
                f"{path}: no sample is proven, expected at least one; nothing was changed, build the shards again"
            )
        entries = [known.entries[report.name] for report in reports if report.name not in bad]
        entries += [shard.entry for shard in repaired if shard.entry is not None]
        write_manifest(
            folder,
            known.schema,
            entries,
            known.encoders,
            known.statistics,
            heads=known.heads,
            dropped=known.dropped + summary["dropped"],
            lost=known.lost,
        )
        lines = [
            {"shard": shard.name, "key": key, "reason": reason, **({} if key else {"samples": shard.count})}
            for shard in repaired
            for key, reason in shard.dropped
        ]
        if lines:
            _append(folder / DROPPED, path / DROPPED, lines)
        gone = [
            name
            for shard in repaired
            if shard.action == "removed"
            for name in (shard.name, index_path(Path(shard.name)).name)
        ]
        commit_change(folder, path, gone, aside)
    return summary


def _doubles(path: Path, reports: list[ShardReport]) -> dict[str, frozenset[str]]:
    """By shard the keys that an earlier one has, too."""
    found: dict[str, set[str]] = {}
    for _, shard, key in duplicates(path, reports):
        found.setdefault(shard, set()).add(key)
    return {name: frozenset(keys) for name, keys in found.items()}


def _misnamed(path: Path, known: Known, reports: list[ShardReport], unlisted: Iterable[str]) -> dict[str, str]:
    """Name of a listed tar -> the file that has its sha256, where that is another: tars were swapped or renamed."""
    files = {report.sha256: report.name for report in reports}
    wanted = {known.entries[report.name]["sha256"] for report in reports} - set(files)
    sizes = {entry["bytes"] for entry in known.entries.values() if entry["sha256"] in wanted}
    files |= {
        _sha256(path / name): name
        for name in unlisted
        if name.endswith(".tar") and (path / name).stat().st_size in sizes
    }
    found = {report.name: files.get(known.entries[report.name]["sha256"], report.name) for report in reports}
    return {name: file for name, file in found.items() if name != file}


def _sha256(path: Path) -> str:
    with LocalFile(path) as file:
        return file.sha256()


def _missing(path: Path, known: Known) -> list[str]:
    """Names in a list that nothing proves of which there is no tar, unless it is the name that is wrong."""
    names = sorted(set(known.entries) - set(list_tars(path)))
    hashes = {_sha256(path / name) for name in list_tars(path)} if names else set()
    return [name for name in names if known.entries[name]["sha256"] not in hashes]


def _repair_shards(
    path: Path,
    folder: Path | None,
    known: Known,
    bad: dict[str, frozenset[str]],
    sources: dict[str, str],
    jobs: int | None,
    track: Track,
) -> list[Repaired]:
    def run(names: Iterable[str], without: dict[str, frozenset[str]]) -> list[Repaired]:
        tasks = [
            RepairTask(
                path,
                name,
                sources.get(name, name),
                known.entries.get(name),
                known.schema,
                known.heads,
                without[name],
                folder,
            )
            for name in names
        ]
        size = sum((path / name).stat().st_size for name in names if is_file(path / name))
        return map_shards(repair_shard, tasks, jobs=jobs, size=2 * size, title=f"repairing {path.name}", track=track)

    repaired = {shard.name: shard for shard in run(list(bad), bad)}
    if not known.proven:  # only now the keys are known
        reports = [ShardReport(shard.name, keys=shard.keys) for shard in repaired.values()]
        again = _doubles(path, reports)
        if again:
            repaired.update({shard.name: shard for shard in run(list(again), again)})
    return list(repaired.values())


def _summary(
    path: Path, known: Known, reports: list[ShardReport], repaired: list[Repaired], aside: dict[str, str]
) -> dict[str, Any]:
    touched = {shard.name for shard in repaired}
    kept = sum(len(report.keys) for report in reports if report.name not in touched)
    actions: dict[str, list[str]] = {}
    for shard in repaired:
        actions.setdefault(shard.action, []).append(shard.name)
    return {
        "action": "repaired",
        "changed": True,
        "kept": kept + sum(len(shard.keys) for shard in repaired),
        "dropped": sum(shard.lost for shard in repaired),
        **actions,
        **({"put aside": sorted(aside)} if aside else {}),
        **({"manifest": known.problem} if known.problem else {}),
        **({"lost": list(known.lost)} if known.lost else {}),
    }


def _append(new: Path, old: Path, lines: list[dict[str, Any]]) -> None:
    before = old.read_text() if old.is_file() else ""
    new.write_text(before + "".join(json.dumps(line) + "\n" for line in lines))


def _unlisted(path: Path, known: Known) -> dict[str, str]:
    """File to be put aside -> its new relative name, which no file has."""
    tars = [] if not known.proven else sorted(set(list_tars(path)) - set(known.entries))
    names = []
    for tar in tars:
        names += [tar, *([index] if (path / (index := index_path(Path(tar)).name)).is_file() else [])]
    orphans = {p.name for p in path.glob("*.tar.idx")} - {
        index_path(Path(name)).name for name in {*list_tars(path), *known.entries}
    }
    found = {}
    for name in [*names, *sorted(orphans)]:
        number = 0
        while (path / ASIDE / (free := f"{name}.{number}" if number else name)).exists():
            number += 1
        found[name] = f"{ASIDE}/{free}"
    return found


def _known(path: Path, schema_set: Path | None) -> Known:
    try:
        manifest = read_manifest(path)
        return Known(
            built_schema(manifest),
            manifest.heads,
            {entry["name"]: entry for entry in manifest.shards},
            True,
            manifest.encoders,
            manifest.statistics,
            manifest.dropped,
            manifest.lost,
        )
    except (DamagedError, TypeError, KeyError) as error:
        problem = str(error)
    try:
        content = json.loads(LocalStorage(path).read(MANIFEST))
    except UnreachableError:
        raise
    except (ValueError, RecursionError):
        content = {}
    content = content if isinstance(content, dict) else {}
    written = content.get("checksums") if isinstance(content.get("checksums"), dict) else {}
    proven = {
        name: content[name] for name, checksum in part_checksums(content).items() if written.get(name) == checksum
    }
    shards = (
        [entry for entry in content.get("shards", []) if fits(entry, ShardEntry)]
        if isinstance(content.get("shards"), list)
        else []
    )
    listed = bool(shards) and content.get("fingerprint") == sha256_json(content["shards"])
    schema, heads = _schema(path, proven, schema_set, problem)
    lost = {name for name in ("encoders", "statistics", "dropped") if name not in proven} | set(proven.get("lost", ()))
    return Known(
        schema,
        heads,
        {entry["name"]: entry for entry in shards},
        listed,
        proven.get("encoders", {}),
        proven.get("statistics", {}),
        proven.get("dropped", 0),
        tuple(sorted(lost)),
        problem,
    )


def _schema(path: Path, proven: dict[str, Any], schema_set: Path | None, problem: str) -> tuple[SampleSchema, bool]:
    """From the manifest's proven parts, else from ``schema_set``, else from another split of this set."""
    if "schema" in proven and "heads" in proven:
        return schema_from(proven["schema"]), proven["heads"]
    others = (
        find_sets(schema_set).values()
        if schema_set
        else [p for p in sorted(path.parent.iterdir()) if p != path and (p / MANIFEST).is_file()]
    )
    for other in others:
        try:
            manifest = read_manifest(other)
            schema = built_schema(manifest)
        except (DamagedError, TypeError, KeyError):
            continue
        if schema_set or (manifest.heads and _agrees(path, schema)):
            return schema, manifest.heads
    raise DamagedError(
        f"{problem}; no proven schema is left in it or in a split next to it, expected one: give "
        f"--schema-from with shards of the same schema, or build these again"
    )


def _agrees(path: Path, schema: SampleSchema) -> bool:
    """Whether the first sample that can be read says that it was written for this schema."""
    for name in list_tars(path):
        try:
            with TarWalk(path / name) as walk:
                data = next(iter(walk)).members["json"][1]
        except (DamagedError, StopIteration, KeyError):
            continue
        if has_head(data):
            head = json.loads(data)
            return (head["schema"], head["version"]) == (schema.name, schema.version)
    return False
