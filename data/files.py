"""Atomic files and directories: a name appears only when its content is complete and synced. Optional packages.

Temporary names carry host, process and a random part, so that two machines on one file system never share one.
"""

import hashlib
import importlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict  # pydantic takes the one of typing from Python 3.12 on

from stagecoach.data.local_files import DamagedError, LocalFile, MissingError, retried
from stagecoach.data.reading import Count, Sha256, inside, read_json

__all__ = ["DamagedError"]

TEMPORARY = ".tmp-"
MANIFEST = "manifest.json"
NFS_LEFTOVER = ".nfs"
"""Begins the name that NFS gives a file which was removed while it was open, until it is closed."""


class FileEntry(TypedDict):
    """What a manifest says of a file."""

    bytes: Count
    sha256: Sha256


class SealManifest(TypedDict):
    """``manifest.json`` of a sealed directory: all of its files, by their names in it."""

    files: Annotated[dict[str, FileEntry], Field(min_length=1)]


class MissingPackageError(ImportError, ValueError):
    """A package of one of Stagecoach's extras is not installed."""


def import_extra(package: str, purpose: str, extra: str = "build") -> Any:
    """Import a package that only an extra installs. Raises ``MissingPackageError`` that names the extra."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"{package} cannot be imported ({error}), expected it for {purpose}; pip install 'stagecoach[{extra}]'"
        ) from error


def temporary_name(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}")


def sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[Any]:
    """Open a temporary file that becomes ``path`` when the block ends, and vanishes when it raises."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, mode) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    with atomic_file(path, "w") as handle:
        json.dump(value, handle, indent=1, sort_keys=True)
        handle.write("\n")


def sha256_file(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def list_files(directory: Path) -> list[str]:
    """Relative names of all that lies below ``directory`` but folders and its manifest. Links are not followed.

    Raises ``OSError`` for a folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    names = [
        str(Path(folder, name).relative_to(directory))
        for folder, folders, files in os.walk(directory, onerror=fail)
        for name in [*files, *(name for name in folders if Path(folder, name).is_symlink())]
        if not name.startswith(NFS_LEFTOVER)
    ]
    return sorted(name for name in names if name != MANIFEST)


def describe_files(directory: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Sync each file and return its size and sha256."""
    files = {}
    for name in names:
        path = directory / name
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    return files


def seal_directory(directory: Path, files: dict[str, dict[str, Any]] | None = None) -> None:
    """Write ``manifest.json`` with size and sha256 of each file below ``directory`` (``files``, where several processes
    have described them already), and sync the directories."""
    write_json(directory / MANIFEST, {"files": files or describe_files(directory, list_files(directory))})
    for path in [directory, *(p for p in directory.rglob("*") if p.is_dir())]:
        sync_directory(path)


def commit_directory(temporary: Path, final: Path) -> None:
    """Give a sealed directory its name. An older one of that name is moved aside first and removed after."""
    old = temporary_name(final) if final.exists() else None
    if old is not None:
        os.replace(final, old)
    os.replace(temporary, final)
    sync_directory(final.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replaced_directory(directory: Path, marker: str) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``directory`` when the block ends, and vanishes when it raises.

    Raises:
        ValueError: ``directory`` may not be replaced (see ``refuse_foreign``).
    """
    refuse_foreign(directory, marker)
    temporary = temporary_name(directory)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        commit_directory(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def refuse_foreign(directory: Path, marker: str) -> None:
    """Raise ``ValueError`` where ``directory`` may not be replaced: it holds files, but not ``marker``, which what is
    about to be written leaves in it."""
    taken = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if taken and not (directory / marker).is_file():
        raise ValueError(
            f"{directory}: holds something else than {marker} and its files, expected an empty or a new "
            f"folder; nothing in it was touched"
        )


def check_directory(directory: Path, hashes: bool | Collection[str] = True) -> SealManifest:
    """Return the manifest of a sealed directory, which holds the files it lists and no others. ``hashes``: whether
    contents are compared, or of which files. Raises ``DamagedError`` naming the first bad file, ``UnreachableError``
    naming one that could not be asked.

    A manifest shows damage. It is no signature: whoever may write the folder may write another.
    """
    path = directory / MANIFEST
    try:
        manifest = read_json(path, SealManifest)
    except DamagedError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DamagedError(
            f"{path}: no readable manifest ({reason}), expected one next to the files it lists"
        ) from error
    found = set(retried(str(directory), lambda: list_files(directory)))
    for name, entry in manifest["files"].items():
        _check_file(inside(directory, name), entry, hashes if isinstance(hashes, bool) else name in hashes)
        found.discard(name)
    if found:
        raise DamagedError(
            f"{directory / min(found)}: not in the manifest of its folder, which lists {len(manifest['files'])} files, "
            f"expected it to list all; remove it if it is no part of the folder"
        )
    return manifest


def _check_file(path: Path, entry: FileEntry, hashes: bool) -> None:
    try:
        with LocalFile(path) as file:
            if file.size != entry["bytes"]:
                raise DamagedError(f"{path}: {file.size} bytes, expected {entry['bytes']}; cut or replaced")
            if hashes and file.sha256() != entry["sha256"]:
                raise DamagedError(
                    f"{path}: content differs from the sha256 in its manifest; it was damaged or replaced"
                )
    except MissingError as error:
        raise DamagedError(f"{path}: missing, expected {entry['bytes']} bytes as its manifest lists") from error
