"""The folder of a build that is not finished: ``OUTPUT/.build``.

    job.json         what is built; two processes with different ones never work at the same build
    parts/           sealed parts, by number; what is on its way has a temporary name
    finish.json      all parts were there and whole, the data set is being put together; no part is touched any more
    staging/         the data set, on its way
    staged/          the data set, whole, on its way to OUTPUT, split by split
    retired/         the data set that was there before, on its way out
    lock/            who changes any of this but ``parts`` (see ``locks``)

The folder vanishes by one rename when the data set stands.
"""

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic takes the one of typing from Python 3.12 on

from stagecoach.data.building.partition import Division, Part, differences
from stagecoach.data.files import MANIFEST, TEMPORARY, sync_directory, temporary_name, write_json
from stagecoach.data.local_files import DamagedError
from stagecoach.data.locks import DirectoryLock, process_exists
from stagecoach.data.reading import below, read_json

BUILD = ".build"
RECORD = "build.json"
SKIPPED = "skipped.jsonl"
DELETIONS = 8


class Finish(TypedDict):
    """``finish.json``: names in the output that the data set takes the place of."""

    retire: list[str]


class Workspace:
    """``OUTPUT/.build`` of the build that ``division`` describes."""

    def __init__(self, output: Path, division: Division) -> None:
        self.output, self.division = output, division
        self.root = output / BUILD
        self.job, self.parts, self.finish = self.root / "job.json", self.root / "parts", self.root / "finish.json"
        self.staging, self.staged, self.retired = (self.root / name for name in ("staging", "staged", "retired"))

    def begin(self, replace: bool, alone: bool) -> bool:
        """Take part in the build, which the first worker begins and later ones join. False where ``output`` already
        holds the data set of this very build. ``alone``: no other worker was started with this one.

        Raises ``ValueError`` where ``output`` holds other files, finished shards (unless ``replace``), or a build that
        was begun with other settings (unless ``replace``, which then begins again).
        """
        self._refuse_foreign()
        self.remove_stale()
        if self.goes_on() and (replace or not finished_splits(self.output)):
            return True
        while True:
            with self.locked():
                if not self.staged.exists():
                    try:
                        return self._begin(replace, alone)
                    finally:
                        if not self.job.exists():
                            self.remove()
                # Its last step was interrupted, and is finished first.
                same = self.is_ours()
                self.publish()
                if same:
                    return False

    def is_ours(self) -> bool:
        """Whether the build in this folder is the one that we want."""
        return read_record(self.job) == self.division.record

    def goes_on(self) -> bool:
        """Whether parts of this build may still be made."""
        return self.is_ours() and not self.finish.exists()

    def is_finished(self) -> bool:
        """Whether ``output`` holds the data set of this build."""
        return not self.job.exists() and read_record(self.output / RECORD) == self.division.record

    def missing(self) -> list[Part]:
        """The parts that nobody has made yet."""
        there = {path.name for path in self.parts.iterdir()}
        return [part for part in self.division.parts if part.name not in there]

    def discard(self, part: Part) -> None:
        """Remove a part that is to be made again, unless the data set is being put together from it."""
        with self.locked():
            if self.goes_on():
                self.drop(self.parts / part.name)
            elif not self.job.exists():
                self.remove()

    def publish(self) -> None:
        """Replace the data set before by the staged one, and end the build. Under the lock; repeatable.

        All that was there goes before anything comes, so that new and old never stand side by side. ``train`` comes
        last: a trainer needs it, and whoever sees it sees all.
        """
        self.retired.mkdir(exist_ok=True)
        try:
            retired = read_json(self.finish, Finish)["retire"]
        except DamagedError as error:
            raise DamagedError(f"{error}, or remove {self.root} to build again") from error
        for name in retired:
            below(self.output, name)
            if (self.output / name).exists() and not (self.retired / name).exists():
                os.rename(self.output / name, self.retired / name)
        for path in sorted(self.staged.iterdir(), key=lambda path: (path.name == "train", path.name)):
            os.rename(path, self.output / path.name)
        sync_directory(self.output)
        self.remove()

    def remove(self) -> None:
        """End the build, under the lock, which goes with it. An output folder in which nothing is left goes too."""
        self.drop(self.root)
        with suppress(OSError):
            self.output.rmdir()

    def abandon(self) -> None:
        """End a build that has failed before any part of it was made, and remove what dead workers left of others."""
        if self.parts.exists():
            self.remove_stale()
            with self.locked():
                if not self.job.exists() or (self.goes_on() and not any(self.parts.iterdir())):
                    self.remove()

    def remove_stale(self) -> None:
        """Remove what processes that were killed on this machine left behind; what others left goes with the build."""
        for folder in (self.output, self.root, self.parts):
            with suppress(FileNotFoundError):
                for path in folder.iterdir():
                    if is_stale(path):
                        _delete(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock. It may be that of a folder just made, where another worker has ended the build: whoever
        finds no ``job.json`` then has to ``remove`` it."""
        lock = DirectoryLock(self.root / "lock")
        while True:
            # Another worker may end the build between any two of these, and take the folders away.
            with suppress(FileNotFoundError):
                with suppress(FileExistsError):
                    self.root.mkdir(parents=True)
                lock.acquire()
                break
        try:
            yield
        finally:
            lock.release()

    def _begin(self, replace: bool, alone: bool) -> bool:
        there, finished = read_record(self.job), finished_splits(self.output)
        ours = there == self.division.record
        if (
            finished
            and there is None
            and not (alone and replace)
            and read_record(self.output / RECORD) == self.division.record
        ):
            return False
        if finished and not replace:
            also = "; with --replace the build that was begun next to them goes on" if ours else ""
            raise ValueError(
                f"{self.output}: holds finished shards; give another folder, or --replace to build them again{also}"
            )
        if there is not None and not ours and not replace:
            raise ValueError(
                f"{self.job}: a build with other settings was begun here: "
                f"{'; '.join(differences(there, self.division.record))}; give the same to go on, another "
                f"folder, or --replace, which begins again"
            )
        if ours:
            return True
        for path in (self.finish, self.staging, self.parts):
            if there is not None and path.exists():
                self.drop(path)
        self.parts.mkdir(exist_ok=True)
        write_json(self.job, self.division.record)
        return True

    def drop(self, path: Path) -> None:
        """Remove a folder or file below the build: its name at once, its content after."""
        aside = temporary_name(path)
        os.rename(path, aside)
        _delete(aside)

    def _refuse_foreign(self) -> None:
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"{self.output}: a file found, expected a folder for the shards or nothing")
        if self.root.exists() or finished_splits(self.output) or not self.output.exists():
            return
        if any(not path.name.startswith(TEMPORARY) for path in self.output.iterdir()):
            raise ValueError(f"{self.output}: holds files that are no shards, expected an empty or a new folder")


def finished_splits(output: Path) -> list[str]:
    """Names of the folders in ``output`` that hold a finished set of shards."""
    if not output.is_dir():
        return []
    return sorted(path.name for path in output.iterdir() if path.name[0] != "." and (path / MANIFEST).is_file())


def read_record(path: Path) -> Any:
    """The content of a JSON file, or None where there is no such file or none that can be read. Raises
    ``UnreachableError``."""
    try:
        return read_json(path, Any)
    except DamagedError:
        return None


def is_stale(path: Path) -> bool:
    """Whether a name is the temporary one of a process of this machine that is no more."""
    named, _, process = path.name.rpartition(".")[0].rpartition(".")
    mine = path.name.startswith(TEMPORARY) and named.endswith(f".{socket.gethostname()}") and process.isdigit()
    return mine and not process_exists(int(process))


def _delete(path: Path) -> None:
    """Again where something came into a folder while it was deleted: a lock that another worker was about to take, a
    file that NFS keeps under another name while it is open."""
    for attempt in range(DELETIONS):
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            time.sleep(0.01 * 2**attempt)
