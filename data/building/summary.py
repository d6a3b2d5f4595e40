"""Results of commands as tables for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table

MEGABYTE = 1e6


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
    rows["reasons"] = "\n".join(f"{number} x {reason}" for reason, number in result["reasons"].items())
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
        table.add_row(name, _text(value))
    return table


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return f"{value:.1f}" if isinstance(value, float) else str(value)
