"""The command line of ``launch/build_shards.py``: its arguments, and one function per command.

Each function returns what ``--json`` prints; ``render`` says the same in words.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from data import examine
from data.builders import BUILDERS, builder
from data.files import atomic_file

DEFAULT_FAMILY = "fantasy_world"
MEGABYTE = 1e6


def parse(argv: Sequence[str] | None = None, description: str | None = None) -> Namespace:
    """Options of ``build`` and ``synthesize`` depend on ``--family``, which is therefore read first; the other commands
    do without a family's packages."""
    argv = list(sys.argv[1:] if argv is None else argv)
    family = ArgumentParser(add_help=False, allow_abbrev=False)
    family.add_argument("--family", default=DEFAULT_FAMILY, help=f"one of {', '.join(sorted(BUILDERS))}")
    made = next((word for word in argv if not word.startswith("-")), None) in ("build", "synthesize")
    parts = builder(family.parse_known_args(argv)[0].family) if made else None

    parser = ArgumentParser(description=description, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    common = ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="write JSON and nothing else to the standard output")

    command = commands.add_parser("build", parents=[common, family], help="raw data to shards")
    command.add_argument("--input", type=Path, required=True, metavar="RAW", help="folder with metadata.json")
    command.add_argument("--output", type=Path, required=True, metavar="SHARDS", help="folder to be made")
    if parts:
        parts.add_build_arguments(command)
    command.add_argument("--skip-bad", action="store_true",
                         help="leave bad clips out and list them in skipped.jsonl (default: the first one stops)")
    command.add_argument("--replace", action="store_true", help="build anew where SHARDS holds finished shards")
    command.add_argument("--max-shard-bytes", type=int, default=10**9, metavar="N",
                         help="size of a tar (default: 1 GB)")

    command = commands.add_parser("synthesize", parents=[common, family], help="write a small raw data set")
    command.add_argument("--output", type=Path, required=True, metavar="RAW", help="folder to be made or replaced")
    command.add_argument("--clips", type=int, default=64, help="how many (default: 64)")
    command.add_argument("--seed", type=int, default=0, help="what the clips depend on (default: 0)")
    if parts:
        parts.add_synthesize_arguments(command)

    for name, text in (("check", "hashes, indices and every sample"), ("inspect", "counts and bytes"),
                       ("preview", "a sheet of pictures")):
        command = commands.add_parser(name, parents=[common], help=text)
        command.add_argument("shards", type=Path, metavar="SHARDS")
        if name == "preview":
            command.add_argument("--output", type=Path, default=Path("preview.png"), metavar="PNG")
            command.add_argument("--count", type=int, default=16, help="samples to show (default: 16)")
    return parser.parse_args(argv)


def execute(arguments: Namespace) -> tuple[dict[str, Any], int]:
    """Run the command; returns its result and the exit code."""
    match arguments.command:
        case "build":
            return builder(arguments.family).build(arguments, _track), 0
        case "synthesize":
            return builder(arguments.family).synthesize(arguments, _track), 0
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
        table = Table(show_header=False, box=None)
        for name, value in result.items():
            table.add_row(name, _text(value))
        console.print(table)


def _split_table(name: str, split: dict[str, Any]) -> Table:
    table = Table(title=f"{name}: {split['samples']} samples in {split['shards']} shards, "
                        f"{split['bytes'] / MEGABYTE:.1f} MB, schema {split['schema']} version {split['version']}")
    table.add_column("field")
    for title in ("MB", "kB per sample"):
        table.add_column(title, justify="right")
    for field, size in split["field_bytes"].items():
        table.add_row(field, f"{size / MEGABYTE:.2f}", f"{size / split['samples'] / 1e3:.1f}")
    return table


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _track(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, description=title)
