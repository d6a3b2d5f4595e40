"""What people see on a terminal: progress bars on the standard error, and results as tables."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

MEGABYTE = 1e6
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Wraps an iterable of known length in a progress bar with a title."""


def track(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """A ``Track`` for people. Of nothing it shows nothing."""
    if not total:
        yield from items
        return
    with _bar() as progress:
        yield from progress.track(items, total=total, description=title)


@contextmanager
def counter(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of so many things, and what tells it how many are done. Of nothing it shows nothing."""
    if not total:
        yield lambda done: None
        return
    with _bar() as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def untracked(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """A ``Track`` without a bar."""
    return items


def build_summary(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a build with megabytes, a line for each reason why items were left out, and no row that tells
    nothing."""
    rows = {
        "message": result["message"],
        "output": result["output"],
        "samples": result["samples"],
        "shards": result["shards"],
        "MB": result["bytes"] / MEGABYTE,
        "skipped": result["skipped"],
    }
    reasons = [f"{number} as {reason}" for reason, number in result["reasons"].items()]
    rows["reasons"] = "\n".join([*reasons, f"all in {Path(result['output'], 'skipped.jsonl')}"] if reasons else [])
    known = {*rows, "bytes", "finished"}
    return {
        name: value
        for name, value in (rows | {n: v for n, v in result.items() if n not in known}).items()
        if value not in ("", {}, 0, 0.0)
    }


def summary_table(result: dict[str, Any]) -> Table:
    """One row per entry; the numbers of a dictionary stand side by side."""
    table = Table(show_header=False, box=None)
    for name, value in result.items():
        table.add_row(name, Text(_text(value), overflow="fold"))  # brackets in a sentence are no markup
    return table


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return f"{value:.1f}" if isinstance(value, float) else str(value)
