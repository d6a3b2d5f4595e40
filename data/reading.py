"""Small files of ours read strictly: regular files of bounded size, JSON of a declared shape, names inside a folder.

Whatever is wrong with a file becomes one ``DamagedError`` that names it.
"""

import json
import math
import os
import stat
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

T = TypeVar("T")

LIMIT = 64 << 20
"""Bytes of a JSON file of ours; the manifest of a checkpoint of 1,000 ranks takes 0.5 MB."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class DamagedError(ValueError):
    """A file or directory is not what its manifest says."""


def read_regular(path: str | os.PathLike[str], limit: int = LIMIT) -> bytes:
    """The content of a regular file of at most ``limit`` bytes. A pipe, a device or a socket is not waited for.

    Raises ``DamagedError``.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise DamagedError(f"{os.fspath(path)}: no regular file, expected one; remove what lies there")
            if found.st_size > limit:
                raise DamagedError(f"{os.fspath(path)}: {found.st_size:,} bytes, expected at most {limit:,}")
            with os.fdopen(handle, "rb", closefd=False) as file:
                content = file.read(limit + 1)
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        if isinstance(error, DamagedError):
            raise
        reason = getattr(error, "strerror", None) or error  # a name with a NUL is a ValueError
        raise DamagedError(f"{os.fspath(path)}: cannot be read ({reason}), expected a file") from error
    if len(content) > limit:
        raise DamagedError(f"{os.fspath(path)}: more than {limit:,} bytes, expected no more")
    return content


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


def read_json(path: str | os.PathLike[str], shape: type[T], limit: int = LIMIT) -> T:
    """``parse_json`` of a regular file of at most ``limit`` bytes. Raises ``DamagedError`` naming it."""
    return parse_json(read_regular(path, limit), shape, os.fspath(path), limit)


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
