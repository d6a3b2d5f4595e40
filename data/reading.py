"""Small files of ours read strictly: regular files of bounded size, JSON of a declared shape, names inside a folder.

Whatever is wrong with a file is one ``DamagedError`` that names it; a file system that gives no answer is no damage.
"""

import json
import math
import os
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from stagecoach.data.local_files import DamagedError, LocalFile

__all__ = ["DamagedError"]

T = TypeVar("T")

LIMIT = 64 << 20
"""Bytes of a JSON file of ours; the manifest of a checkpoint of 1,000 ranks takes 0.5 MB."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def read_regular(path: str | os.PathLike[str], limit: int = LIMIT, retries: int | None = None) -> bytes:
    """The content of a regular file of at most ``limit`` bytes. A pipe, a device or a socket is not waited for.

    Raises ``DamagedError``, and ``UnreachableError`` where the file system gives no answer (``local_files.retried``).
    """
    with LocalFile(path, retries) as file:
        if file.size > limit:
            raise DamagedError(f"{file.path}: {file.size:,} bytes, expected at most {limit:,}")
        return file.read(0, file.size)


def parse_json(
    content: bytes, shape: type[T], where: str, limit: int = LIMIT, extra: Literal["forbid", "ignore"] = "forbid"
) -> T:
    """JSON as a value of ``shape``: a TypedDict, a dataclass or any type that pydantic knows, checked strictly.

    No key twice, no number that is not finite, no key that ``shape`` does not have (but where ``extra`` is
    to be ignored), no nesting beyond 200.
    ``where`` begins the message of the ``DamagedError`` that is raised for anything else.
    """
    try:
        if len(content) > limit:
            raise ValueError(f"{len(content):,} bytes, at most {limit:,}")
        text = content.decode("utf-8")
        json.loads(text, object_pairs_hook=_no_key_twice, parse_constant=_refuse_number, parse_float=_finite)
        return _adapter(shape).validate_json(content, strict=True, extra=extra)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        reason = f"{at}: {first['msg']}" if at else first["msg"]
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
    raise DamagedError(f"{where}: not the JSON expected there ({reason:.300}); it was damaged or edited, restore it")


def fits(value: Any, shape: Any) -> bool:
    """Whether a value that was read from JSON is of a shape."""
    try:
        _adapter(shape).validate_python(value, strict=True, extra="forbid")
    except ValidationError:
        return False
    return True


def read_json(path: str | os.PathLike[str], shape: type[T], limit: int = LIMIT) -> T:
    """``parse_json`` of a regular file of at most ``limit`` bytes. Raises ``DamagedError`` naming it, and as
    ``read_regular``."""
    return parse_json(read_regular(path, limit), shape, os.fspath(path), limit)


def not_finite(values: dict[str, Any]) -> str | None:
    """The name of the first value (a number or nested lists of them) that is not finite; JSON cannot hold it."""
    return next((name for name, value in values.items() if not _is_finite(value)), None)


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def below(directory: Path, name: str) -> Path:
    """The path of ``name`` below a folder. Raises ``DamagedError`` for a name that leads out of it: absolute, with
    ``..``, or none."""
    parts = PurePosixPath(name).parts
    plain = bool(parts) and str(PurePosixPath(*parts)) == name and ".." not in parts and "\0" not in name
    if not plain or name.startswith("/"):
        raise DamagedError(f"{directory}: names {name!r:.120}, expected names of files in this folder")
    return directory / name


def inside(directory: Path, name: str) -> Path:
    """As ``below``, and no link leads out of the folder either."""
    path = below(directory, name)
    try:
        within = path.resolve().is_relative_to(directory.resolve())
    except (OSError, RuntimeError) as error:  # a ring of links
        raise DamagedError(f"{path}: cannot be followed ({error}), expected a file") from error
    if not within:
        raise DamagedError(f"{path}: leads out of its folder to {path.resolve()}, expected a file in it, not a link")
    return path


@lru_cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r:.80} is there twice")
    return found


def _refuse_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is too large a number")
    return value
