"""The command line of ``launch/build_shards.py``: its arguments, and one function per command.

Each function returns what ``--json`` prints; ``render`` says the same in words.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from data import examine_commands
from data.builders import BUILDERS, builder
from data.progress import track
from data.summary import summary_table

DEFAULT_FAMILY = "fantasy_world"
FAMILY_COMMANDS = ("build", "synthesize")


def parse(argv: Sequence[str] | None = None, description: str | None = None) -> Namespace:
    """Options of ``build`` and ``synthesize`` depend on ``--family``, which is therefore read first; the other commands
    do without a family's packages."""
    argv = list(sys.argv[1:] if argv is None else argv)
    family = ArgumentParser(add_help=False, allow_abbrev=False)
    family.add_argument("--family", default=DEFAULT_FAMILY, help=f"one of {', '.join(sorted(BUILDERS))}")
    made = next((word for word in argv if not word.startswith("-")), None) in FAMILY_COMMANDS
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

    examine_commands.add(commands, common)
    return parser.parse_args(argv)


def execute(arguments: Namespace) -> tuple[dict[str, Any], int]:
    """Run the command; returns its result and the exit code."""
    match arguments.command:
        case "build":
            return builder(arguments.family).build(arguments, track), 0
        case "synthesize":
            return builder(arguments.family).synthesize(arguments, track), 0
    return examine_commands.execute(arguments)


def render(command: str, result: dict[str, Any]) -> None:
    """Print a result for people."""
    if command in FAMILY_COMMANDS:
        Console().print(summary_table(result))
    else:
        examine_commands.render(command, result)
