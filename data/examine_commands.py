"""The commands of ``launch/build_shards.py`` that look at finished shards.

``data.commands`` calls ``add`` for their arguments, ``execute`` for what ``--json`` prints, and ``render`` for the same
in words.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from data import examine
from data.files import atomic_file
from data.summary import MEGABYTE, summary_table


def add(commands: Any, common: ArgumentParser) -> None:
    """Add each command to ``commands``, what ``ArgumentParser.add_subparsers`` gave; ``common`` are options of all."""
    for name, text in (("check", "hashes, indices and every sample"), ("inspect", "counts and bytes"),
                       ("preview", "a sheet of pictures")):
        command = commands.add_parser(name, parents=[common], help=text)
        command.add_argument("shards", type=Path, metavar="SHARDS")
        if name == "preview":
            command.add_argument("--output", type=Path, default=Path("preview.png"), metavar="PNG")
            command.add_argument("--count", type=int, default=16, help="samples to show (default: 16)")


def execute(arguments: Namespace) -> tuple[dict[str, Any], int]:
    """Run the command; returns its result and the exit code."""
    match arguments.command:
        case "check":
            problems = examine.check(arguments.shards)
            return {"problems": problems}, 1 if problems else 0
        case "inspect":
            return examine.inspect(arguments.shards), 0
    picture = examine.contact_sheet(arguments.shards, arguments.count)
    with atomic_file(arguments.output) as handle:
        Image.fromarray(picture).save(handle, "PNG")
    return {"output": str(arguments.output)}, 0


def render(command: str, result: dict[str, Any]) -> None:
    """Print a result for people."""
    console = Console()
    if command == "check":
        for problem in result["problems"]:
            console.print(problem, style="red", highlight=False, soft_wrap=True)
        console.print(f"{len(result['problems'])} problems" if result["problems"] else "all shards are whole")
    elif command == "inspect":
        for name, split in result.items():
            console.print(_split_table(name, split))
    else:
        console.print(summary_table(result))


def _split_table(name: str, split: dict[str, Any]) -> Table:
    table = Table(title=f"{name}: {split['samples']} samples in {split['shards']} shards, "
                        f"{split['bytes'] / MEGABYTE:.1f} MB, schema {split['schema']} version {split['version']}")
    table.add_column("field")
    for title in ("MB", "kB per sample"):
        table.add_column(title, justify="right")
    for field, size in split["field_bytes"].items():
        table.add_row(field, f"{size / MEGABYTE:.2f}", f"{size / split['samples'] / 1e3:.1f}")
    return table
