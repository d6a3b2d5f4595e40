"""Results of commands as tables for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table

MEGABYTE = 1e6


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
