"""Is a set of shards what its manifest says: every hash, every index against the real headers, every sample."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagecoach.data.files import MANIFEST
from stagecoach.data.format.decode import decode_sample
from stagecoach.data.format.index import Row, read_index, read_row
from stagecoach.data.format.schema import Field, SampleSchema
from stagecoach.data.format.shards import Manifest, ShardEntry, index_path, read_manifest
from stagecoach.data.local_files import DamagedError, LocalFile, UnreachableError, is_file
from stagecoach.data.maintenance.parallel import map_shards
from stagecoach.data.maintenance.rebuild import FOLDER, is_pending
from stagecoach.data.maintenance.scan import TarScan, scan_tar
from stagecoach.data.progress import Track, untracked

REST = "..."
"""In an index's list of what it leaves out: the samples behind the place where the tar cannot be read. No key."""


def find_sets(directory: Path) -> dict[str, Path]:
    """The folders that hold shards, whole or not: ``directory`` itself, or its ``train``, ``val`` and the like.

    Raises ``DamagedError`` where there is none.
    """
    if _holds_shards(directory):
        return {directory.resolve().name: directory}
    found = {}
    if directory.is_dir():
        found = {path.name: path for path in sorted(directory.iterdir()) if path.name[0] != "." and _holds_shards(path)}
    if not found:
        packed = sorted(path.name for path in directory.glob("*.tar.*") if path.suffix != ".idx")
        if packed:
            raise DamagedError(
                f"{directory}: {len(packed)} compressed tars found (first {packed[0]}), expected plain ones, of which "
                "single samples can be read; unpack them first (gzip -d)"
            )
        below = next((path.parent for path in sorted(directory.glob("*/*/*.tar"))), None)
        if below is not None:
            raise DamagedError(
                f"{directory}: tars found two folders below, in {below}, expected them in the folder or in one "
                f"below it (train, val); give {below.parent}"
            )
        raise DamagedError(
            f"{directory}: no shards found, expected {MANIFEST} or tars in it or in a folder below it "
            f"(train, val); an interrupted build leaves none, run it again"
        )
    return found


def _holds_shards(path: Path) -> bool:
    return path.is_dir() and ((path / MANIFEST).exists() or is_pending(path) or bool(list_tars(path)))


def list_tars(directory: Path) -> list[str]:
    """The tars directly in a folder, by name, hidden ones left out."""
    return sorted(path.name for path in directory.glob("*.tar") if not path.name.startswith("."))


def built_schema(manifest: Manifest) -> SampleSchema:
    """The schema that the shards of a manifest were built for."""
    return schema_from(manifest.schema)


def schema_from(described: dict[str, Any]) -> SampleSchema:
    """The inverse of ``describe_schema``. Raises ``TypeError`` or ``KeyError`` for anything else."""
    fields = tuple(Field(**{**field, "shape": tuple(field["shape"])}) for field in described["fields"])
    return SampleSchema(**{**described, "fields": fields})


@dataclass
class ShardReport:
    """``problems``: one sentence each. ``keys``: of all samples that the index lists (or, without an index, the tar
    holds), ``bad`` those of them that are not as they should be. ``sha256``: of the tar as it is, if it is there.
    ``unreachable``: nothing is known of the shard, as its storage gave no answer."""

    name: str
    sha256: str = ""
    problems: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)
    unreachable: bool = False

    def blame(self, key: str, problem: str) -> None:
        if key not in self.bad:
            self.bad.add(key)
            self.problems.append(problem)


@dataclass(frozen=True)
class ShardTask:
    directory: Path
    entry: ShardEntry
    schema: SampleSchema
    heads: bool


def check(directory: Path, jobs: int | None = None, track: Track = untracked) -> list[str]:
    """All that is wrong with the shards in ``directory``, one sentence each: hashes, indices against the tars' own
    headers, crc and schema of every sample, keys that come twice, tars that are missing or that no manifest lists.

    Reads every tar once, in ``jobs`` processes (default: one per CPU), each holding a sample and an index at a time.
    """
    problems = []
    for path in find_sets(directory).values():
        if is_pending(path):
            problems.append(
                f"{path / FOLDER}: an interrupted repair is in the way, expected none; run build_shards.py "
                f"repair again, which finishes it"
            )
        try:
            manifest = read_manifest(path)
            schema = built_schema(manifest)
        except (DamagedError, UnreachableError) as error:
            problems.append(str(error))
            continue
        except (TypeError, KeyError) as error:
            problems.append(
                f"{path / MANIFEST}: its schema cannot be read ({type(error).__name__}: {error}), expected "
                f"name, version and fields; rebuild the shards"
            )
            continue
        problems += check_folder(path, manifest)
        reports = check_shards(path, manifest.shards, schema, manifest.heads, jobs, track)
        problems += [problem for report in reports for problem in report.problems]
        problems += [problem for problem, _, _ in duplicates(path, reports)]
    return problems


def check_folder(directory: Path, manifest: Manifest) -> list[str]:
    """Tars and indices that lie next to those of the manifest. (What is missing, ``check_shard`` says.)"""
    listed = {entry["name"] for entry in manifest.shards}
    orphans = {path.name.removesuffix(".idx") for path in directory.glob("*.tar.idx")} - set(list_tars(directory))
    return [
        f"{directory / name}: not listed in {MANIFEST}, expected only the {len(listed)} tars that it lists; remove "
        f"it, or run build_shards.py repair, which puts it aside"
        for name in [
            *sorted(set(list_tars(directory)) - listed),
            *sorted(index_path(Path(name)).name for name in orphans - listed),
        ]
    ]


def check_shards(
    directory: Path, entries: list[ShardEntry], schema: SampleSchema, heads: bool, jobs: int | None, track: Track
) -> list[ShardReport]:
    tasks = [ShardTask(directory, entry, schema, heads) for entry in entries]
    return map_shards(
        check_shard,
        tasks,
        jobs=jobs,
        size=sum(entry["bytes"] for entry in entries),
        title=f"checking {directory.name}",
        track=track,
    )


def duplicates(directory: Path, reports: list[ShardReport]) -> list[tuple[str, str, str]]:
    """``(sentence, shard, key)`` of each sound sample whose key an earlier one has."""
    seen: dict[str, str] = {}
    found = []
    for report in reports:
        for key in report.keys:
            if key in report.bad:
                continue
            if key in seen:
                found.append(
                    (
                        f"{directory / report.name}: sample {key!r} is also in {seen[key]}, expected each key "
                        f"once; rebuild the shards or run build_shards.py repair",
                        report.name,
                        key,
                    )
                )
            else:
                seen[key] = report.name
    return found


def check_shard(task: ShardTask) -> ShardReport:
    """One tar and its index."""
    try:
        return _check_shard(task)
    except UnreachableError as error:
        return ShardReport(task.entry["name"], problems=[str(error)], unreachable=True)


def _check_shard(task: ShardTask) -> ShardReport:
    entry, path = task.entry, task.directory / task.entry["name"]
    report = ShardReport(entry["name"])
    index = None
    try:
        index = read_index(task.directory, entry)
        report.keys = [row["key"] for row in index["samples"]]
    except DamagedError as error:
        report.problems.append(str(error))
    if not is_file(path):
        report.problems.append(
            f"{path}: missing, expected {entry['bytes']} bytes as the manifest lists; copy or build "
            f"it again, or run build_shards.py repair"
        )
        report.bad.update(report.keys)
        return report
    scan = scan_tar(path, task.schema, task.heads)
    report.sha256 = scan.sha256
    known = index is not None and REST in index.get("skipped", {})
    _check_tar(report, path, entry, scan, known)
    if not scan.sha256:  # not readable at all
        report.bad.update(report.keys)
    elif index is None:
        report.keys = [row["key"] for row in scan.rows]
        for key, problem in scan.bad.items():
            report.blame(key, problem)
    else:
        _check_rows(report, task, path, index, scan)
    return report


def _check_tar(report: ShardReport, path: Path, entry: ShardEntry, scan: TarScan, known: bool) -> None:
    """``known``: its index was made of the samples before the place where the tar ends or cannot be read."""
    where = f" ({scan.error.removeprefix(f'{path}: ').partition(';')[0]})" if scan.error else ""
    if scan.bytes != entry["bytes"]:
        report.problems.append(
            f"{path}: {scan.bytes} bytes, expected {entry['bytes']} as the manifest lists{where}; "
            f"it was cut or replaced, copy or build it again, or run build_shards.py repair"
        )
    elif scan.sha256 != entry["sha256"]:
        report.problems.append(
            f"{path}: content differs from the sha256 in the manifest{where}; it was damaged or "
            f"replaced, copy or build it again, or run build_shards.py repair"
        )
    elif scan.error and not known:
        report.problems.append(scan.error)


def _check_rows(report: ShardReport, task: ShardTask, path: Path, index: dict[str, Any], scan: TarScan) -> None:
    """The index against what the walk over the tar found."""
    rows: list[Row] = index["samples"]
    idx, real = index_path(path), {row["key"]: row for row in scan.rows}
    cut = scan.bytes != task.entry["bytes"]
    dims = index.get("dims")
    with LocalFile(path) as file:
        for row in rows:
            key, found = row["key"], real.get(row["key"])
            where = f"{path}: sample {key!r}"
            if found is not None:
                _compare(report, idx, where, row, found, dims, task.schema)
                if key in scan.bad:
                    report.blame(key, scan.bad[key])
            elif scan.error is None:
                report.blame(
                    key,
                    f"{idx}: sample {key!r} is not in the tar, expected the samples that its headers "
                    f"name; run build_shards.py repair",
                )
            else:  # behind the byte where the walk ended
                try:
                    decode_sample(task.schema, read_row(file, row, where), where, task.heads)
                except UnreachableError:
                    raise
                except ValueError as error:
                    if cut:
                        report.bad.add(key)  # the sentence on the tar says it for all of them
                    else:
                        report.blame(key, str(error))
    listed = {row["key"]: number for number, row in enumerate(rows)}
    if len(listed) < len(rows):
        report.problems.append(
            f"{idx}: {len(rows) - len(listed)} keys come twice, expected each once; run build_shards.py repair"
        )
    unlisted = [key for key in real if key not in listed and key not in index.get("skipped", {})]
    report.problems += [
        f"{idx}: sample {key!r} of the tar is not listed, expected all that its headers name; run "
        f"build_shards.py repair"
        for key in unlisted
    ]
    order = [listed[key] for key in real if key in listed]
    if order != sorted(order):
        report.problems.append(
            f"{idx}: lists the samples in another order than the tar holds them; run build_shards.py repair"
        )


def _compare(
    report: ShardReport, idx: Path, where: str, row: Row, found: Row, dims: list[str] | None, schema: SampleSchema
) -> None:
    for name in sorted(set(row["members"]) | set(found["members"])):
        listed, real = row["members"].get(name), found["members"].get(name)
        if listed is None or real is None or listed[:2] != real[:2]:
            report.blame(
                row["key"],
                f"{idx}: {name!r} of sample {row['key']!r} lies at {listed and listed[:2]} (offset, size), expected "
                f"{real and real[:2]} as the tar's header says; run build_shards.py repair",
            )
        elif listed[2] != real[2]:
            report.blame(
                row["key"],
                f"{where}: crc32 of {name!r} differs from the index; the tar was damaged after "
                f"it was built, copy or build it again, or run build_shards.py repair",
            )
    if dims is not None and found["sizes"] is not None:
        sizes = dict(zip(schema.dims, found["sizes"], strict=True))
        if row.get("sizes") != [sizes.get(dim) for dim in dims]:
            report.blame(
                row["key"],
                f"{idx}: sizes of sample {row['key']!r} are {row.get('sizes')} along {dims}, expected "
                f"{[sizes.get(dim) for dim in dims]} as its arrays have; run build_shards.py repair",
            )
