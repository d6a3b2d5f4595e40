"""Progress bars on the standard error, with the time that is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Wraps an iterable of known length in a progress bar with a title."""


def track(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """A ``Track`` for people. Of nothing it shows nothing."""
    if not total:
        yield from items
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, description=title)


def untracked(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """A ``Track`` without a bar."""
    return items
