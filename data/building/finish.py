"""The last step of a build: of all its parts, one data set. Any worker may do it, and may be killed while it does."""

import json
import os
from pathlib import Path

from stagecoach.data.building.item_files import describe_items, first_change
from stagecoach.data.building.jobs import BuildJob, RawError
from stagecoach.data.building.parts import PartRecord, Skipped, part_files, read_part, read_record
from stagecoach.data.building.workspace import RECORD, SKIPPED, Workspace, finished_splits
from stagecoach.data.files import TEMPORARY, DamagedError, atomic_file, sync_directory, write_json
from stagecoach.data.format.shards import write_manifest


def finish(workspace: Workspace, job: BuildJob, skip_bad: bool, readers: int = 4) -> None:
    """Move the shards of all parts into their splits, write the manifests, and publish the splits; nothing
    where another worker did so. All parts are there.

    Raises ``RawError`` where an item was left out unless ``skip_bad``, and where none is left for training (the build
    then ends); ``DamagedError`` where a part is damaged, which is removed, or its raw files (``readers`` threads look)
    have changed since; ``ValueError`` where the parts were made by different encoders.
    """
    with workspace.locked():
        if not workspace.job.exists():
            workspace.remove()
            return
        if not workspace.is_ours():
            raise ValueError(
                f"{workspace.job}: another build was begun here while this one ran; its shards will be "
                f"those, expected one build of an output at a time"
            )
        if workspace.goes_on():
            parts = _read_parts(workspace, job, readers)
            _check_skipped(workspace, parts, skip_bad)
            _check_encoders(parts)
            coming = [*{part["split"] for part in parts if part["samples"]}, RECORD, SKIPPED]
            leaving = {name for name in coming if (workspace.output / name).exists()}
            write_json(workspace.finish, {"retire": sorted(leaving.union(finished_splits(workspace.output)))})
        if not workspace.staged.exists():
            _stage(workspace, job)
        workspace.publish()


def _read_parts(workspace: Workspace, job: BuildJob, readers: int) -> list[PartRecord]:
    parts = []
    for part in workspace.division.parts:
        folder = workspace.parts / part.name
        try:
            # Whoever made the part in this run or found it there has compared the hashes.
            found = read_part(folder, workspace.division.record_hash, hashes=False)
            change = first_change(job, part.items, found["raw_files"], describe_items(job, part.items, readers))
            if change:
                raise DamagedError(f"{folder}: {change} has changed since, expected raw data to stay as they are")
            parts.append(found)
        except DamagedError as error:
            if folder.exists():
                workspace.drop(folder)
            raise DamagedError(f"{error}; start the same command again, which makes {part.name} again") from error
    return parts


def _check_skipped(workspace: Workspace, parts: list[PartRecord], skip_bad: bool) -> None:
    skipped = _skipped(workspace, parts)
    if skipped and not skip_bad:
        raise RawError(f"{skipped[0]['reason']} (and {len(skipped) - 1} more); give --skip-bad to leave them out")
    if not any(part["samples"] for part in parts if part["split"] == "train"):
        total = len(skipped) + sum(part["samples"] for part in parts)
        first = f"the first one left out: {skipped[0]['reason']}" if skipped else "none was left out"
        workspace.remove()
        raise RawError(f"{workspace.output}: no usable item for training among {total}; {first}")


def _check_encoders(parts: list[PartRecord]) -> None:
    made = [part for part in parts if part["samples"]]
    for part in made:
        if part["encoders"] != made[0]["encoders"]:
            raise ValueError(
                f"{part['part']} was made by encoders {json.dumps(part['encoders'])}, {made[0]['part']} by "
                f"{json.dumps(made[0]['encoders'])}, expected the same for all; begin again with --replace"
            )


def _stage(workspace: Workspace, job: BuildJob) -> None:
    """Put the data set together in ``staging``, which is then called ``staged``. Repeatable."""
    parts = [read_record(workspace.parts / part.name) for part in workspace.division.parts]
    made = [part for part in parts if part["samples"]]
    workspace.staging.mkdir(exist_ok=True)
    for split in sorted({part["split"] for part in made}):
        folder = workspace.staging / split
        folder.mkdir(exist_ok=True)
        members = [part for part in made if part["split"] == split]
        for part in members:
            _move(workspace.parts / part["part"], folder, part)
        statistics = job.statistics().merge([part["statistics"] for part in members])
        shards = [shard for part in members for shard in part["shards"]]
        write_manifest(folder, job.schema, shards, made[0]["encoders"] or {}, statistics)
    skipped = _skipped(workspace, parts)
    if skipped:
        with atomic_file(workspace.staging / SKIPPED, "w") as handle:
            handle.writelines(json.dumps(entry) + "\n" for entry in skipped)
    write_json(workspace.staging / RECORD, workspace.division.record)
    for path in workspace.staging.rglob(f"{TEMPORARY}*"):  # of whoever was killed here; we hold the lock
        path.unlink()
    for folder in (*workspace.staging.glob("*/"), workspace.staging):
        sync_directory(folder)
    os.rename(workspace.staging, workspace.staged)
    sync_directory(workspace.root)


def _move(folder: Path, target: Path, part: PartRecord) -> None:
    for name in part_files(part):
        if not (target / name).exists():  # else it was moved by whoever was killed here
            os.rename(folder / name, target / name)


def _skipped(workspace: Workspace, parts: list[PartRecord]) -> list[Skipped]:
    unusable: list[Skipped] = [{"key": name, "reason": str(error)} for name, error in workspace.division.unusable]
    return unusable + [entry for part in parts for entry in part["skipped"]]
