"""Changing several files of a folder as one: what shall be done is written down first, and done again after a crash.

New files and a plan are made in a temporary folder, which becomes ``.repair`` in one rename. From then on the change is
pending: whoever finds that folder moves the files where they belong, the manifest last, and removes it.
"""

import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from typing_extensions import TypedDict

from stagecoach.data.files import MANIFEST, TEMPORARY, sync_directory, temporary_name, write_json
from stagecoach.data.local_files import DamagedError, is_file
from stagecoach.data.locks import process_exists
from stagecoach.data.reading import below, read_json

FOLDER = ".repair"
PLAN = "plan.json"
OWNER = re.compile(rf"{re.escape(TEMPORARY + FOLDER)}\.(?P<host>.+)\.(?P<process>\d+)\.[0-9a-f]+")


class Plan(TypedDict):
    """``plan.json``: what is to be done with which files."""

    files: list[str]
    remove: list[str]
    aside: dict[str, str]


def is_pending(directory: Path) -> bool:
    """Whether a change was committed here and not finished."""
    return (directory / FOLDER).is_dir()


@contextmanager
def change_folder(directory: Path) -> Iterator[Path]:
    """A new folder for ``commit_change``, on the same file system; gone when the block ends. What killed processes
    left is removed. Raises ``ValueError`` where one of this host is still at work."""
    for path in directory.glob(f"{TEMPORARY}{FOLDER}.*"):
        owner = OWNER.fullmatch(path.name)
        process = int(owner["process"]) if owner and owner["host"] == socket.gethostname() else os.getpid()
        if process != os.getpid() and process_exists(process):
            raise ValueError(f"{path}: process {process} is repairing this folder, expected no other; wait for it")
        shutil.rmtree(path)
    folder = temporary_name(directory / FOLDER)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit_change(folder: Path, directory: Path, remove: Iterable[str], aside: dict[str, str]) -> None:
    """All files in ``folder`` shall replace those of the same name in ``directory``, those of ``remove`` be removed,
    and those of ``aside`` moved to the relative name given there. Does it, too."""
    files = sorted(path.name for path in folder.iterdir())
    for name in files:
        with open(folder / name, "rb") as handle:
            os.fsync(handle.fileno())
    write_json(folder / PLAN, {"files": files, "remove": sorted(remove), "aside": aside})
    os.replace(folder, directory / FOLDER)
    sync_directory(directory)
    finish_change(directory)


def finish_change(directory: Path) -> None:
    """Do what was committed; may be interrupted and called again at any point."""
    folder = directory / FOLDER
    if not is_file(folder / PLAN):  # all was done, only the folder was left
        shutil.rmtree(folder)
        return
    try:
        plan = read_json(folder / PLAN, Plan)
        files, remove, aside = plan["files"], plan["remove"], plan["aside"]
        for name in [*files, *remove, *aside, *aside.values()]:
            below(directory, name)
    except DamagedError as error:
        raise DamagedError(
            f"{error}, expected what an interrupted repair left; move that folder away and run repair again"
        ) from error
    for name, other in aside.items():
        (directory / other).parent.mkdir(exist_ok=True)
        if (directory / name).exists():
            os.replace(directory / name, directory / other)
    for name in remove:
        (directory / name).unlink(missing_ok=True)
    for name in sorted(files, key=lambda name: name == MANIFEST):
        if name == MANIFEST:
            sync_directory(directory)
        if (folder / name).exists():
            os.replace(folder / name, directory / name)
    sync_directory(directory)
    (folder / PLAN).unlink()
    shutil.rmtree(folder)
    sync_directory(directory)
