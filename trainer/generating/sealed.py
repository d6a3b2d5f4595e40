"""The folder of an answered request. It appears when all of it is written, with ``result.json``, which says what it
was made of, and a manifest of its files; one that is there is kept where it was made of the same."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import (
    Any,
    NotRequired,  # pydantic takes the one of typing from Python 3.12 on
)

from typing_extensions import TypedDict

from stagecoach.data.files import (
    TEMPORARY,
    DamagedError,
    check_directory,
    commit_directory,
    refuse_foreign,
    seal_directory,
    sha256_json,
    temporary_name,
    write_json,
)
from stagecoach.data.locks import DirectoryLock, HeldError, describe
from stagecoach.data.reading import Sha256, read_json

RESULT = "result.json"
LOCK = "lock"

log = logging.getLogger(__name__)


class Result(TypedDict):
    """``result.json``: what decided the answer (``request``, ``settings`` and the sha256 of both), the folder that the
    request's paths are relative to (``source``), ``facts`` about the answer, the files that stand for it, and how long
    it took."""

    sha256: Sha256
    request: dict[str, Any]
    source: NotRequired[str]
    settings: dict[str, Any]
    facts: dict[str, Any]
    shown: list[str]
    seconds: float
    peak_bytes: int | None
    version: str


def identity_hash(request: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    return sha256_json({"request": request, "settings": settings})


def is_answered(folder: Path, request: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether ``folder`` holds the answer. Raises ``ValueError`` where it holds something else, saying what differs,
    or is damaged."""
    refuse_foreign(folder, RESULT)
    if not (folder / RESULT).is_file():
        return False
    found = read_result(folder)
    wanted = {"request": request, "settings": settings}
    if found["sha256"] != identity_hash(request, settings):
        raise ValueError(
            f"{folder}: was made with {_difference(dict(found), wanted)}; expected the same, an empty place, or "
            "--remake, which makes it again"
        )
    try:
        check_directory(folder, hashes=False)
    except DamagedError as error:
        raise DamagedError(f"{error}; --remake makes it again") from error
    return True


def read_result(folder: Path) -> Result:
    """Raises ``DamagedError``."""
    return read_json(folder / RESULT, Result)


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first few values that differ, by dotted names."""
    before, now = _flat({name: found[name] for name in wanted}), _flat(wanted)
    different = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
    said = [f"{name} {before.get(name)!r:.60} instead of {now.get(name)!r:.60}" for name in different[:3]]
    return ", ".join(said) + (f" and {len(different) - 3} more" if len(different) > 3 else "")


def _flat(value: Any, above: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {above: list(value) if isinstance(value, tuple) else value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= _flat(inner, f"{above}.{name}" if above else name)
    return found


@contextmanager
def sealed_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder``, sealed, when the block ends, and vanishes when it raises. The block
    writes ``RESULT`` last. What lies there is replaced if it is an answer, which the caller has asked."""
    temporary = temporary_name(folder)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        seal_directory(temporary)
        commit_directory(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_result(folder: Path, result: Result) -> None:
    """Raises ``ValueError`` for a number that is none, which JSON does not have."""
    json.dumps(result, allow_nan=False)
    write_json(folder / RESULT, result)


@contextmanager
def output_folder(path: Path) -> Iterator[None]:
    """``path``, made and locked while the block runs; what a killed command left half-written in it is removed.

    Raises ``ValueError`` where another command writes to it.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: is a file, expected a folder for the answers")
    path.mkdir(parents=True, exist_ok=True)
    lock = DirectoryLock(path / LOCK)
    try:
        lock.acquire(refuse=True, on_wait=lambda owner: log.info(f"{path} is locked by {describe(owner)}; waiting"))
    except HeldError as error:
        raise ValueError(
            f"{path}: another command writes to it ({describe(error.owner)}), expected this one to be the only one; "
            "wait for it, or name another --output"
        ) from error
    try:
        for leftover in [*path.rglob(f"{TEMPORARY}*"), *path.glob(f"{LOCK}.dead-*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        with suppress(OSError):
            lock.release()
