"""Requests as people write them, in a file or in flags. Imports nothing heavy: they are read before torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Listed:
    """One entry: a JSON object, or the ``error`` with which it was read. ``where`` it stands, its ``folder``, and the
    ``name`` of its request where it has no id."""

    where: str
    folder: Path
    name: str
    entry: Mapping[str, Any] | None = None
    error: str = ""


def read_requests(path: Path) -> list[Listed]:
    """The entries of a file: one JSON object a line (.jsonl), or one object or a list of them (.json).

    A line that holds none is an entry with its ``error``. Raises ``ValueError`` for a file that cannot be read, or
    holds nothing.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: not readable ({reason}), expected requests as .jsonl or .json") from error
    if path.suffix == ".json":
        return _whole(path, text)
    listed = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            listed.append(_parsed(line, f"{path}: line {number}", path.parent, f"{number:05d}"))
    if not listed:
        raise ValueError(f"{path}: holds no request, expected one JSON object a line")
    return listed


def _whole(path: Path, text: str) -> list[Listed]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}), expected one request or a list of them") from error
    if not isinstance(content, list):
        return [_entry(content, str(path), path.parent, path.stem)]
    if not content:
        raise ValueError(f"{path}: holds no request, expected one or a list of them")
    return [_entry(one, f"{path}: entry {i}", path.parent, f"{i:05d}") for i, one in enumerate(content, 1)]


def _parsed(line: str, where: str, folder: Path, name: str) -> Listed:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Listed(where, folder, name, error=f"{where}: not JSON ({error}), expected one object")
    return _entry(content, where, folder, name)


def _entry(content: Any, where: str, folder: Path, name: str) -> Listed:
    if not isinstance(content, dict):
        return Listed(where, folder, name, error=f"{where}: holds {content!r:.80}, expected a JSON object")
    return Listed(where, folder, name, content)
