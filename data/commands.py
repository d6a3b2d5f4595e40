"""The command line of ``launch/build_shards.py``: its arguments, and one function per command.

Each function returns what ``--json`` prints; ``render`` says the same in words.
"""

from __future__ import annotations

import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from stagecoach.data.builders import BUILDERS, builder
from stagecoach.data.building.build import build
from stagecoach.data.building.options import BuildOptions, add_options, read_options
from stagecoach.data.building.summary import build_summary, summary_table
from stagecoach.data.building.worker_rank import WorkerRank
from stagecoach.data.maintenance import commands as maintenance
from stagecoach.data.progress import track, untracked

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
    # The deepspeed launcher passes it; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    common = ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="write JSON and nothing else to the standard output")

    command = commands.add_parser("build", parents=[common, family], help="raw data to shards")
    _add_build(command)
    if parts:
        parts.add_build_arguments(command)

    command = commands.add_parser("synthesize", parents=[common, family], help="write a small raw data set")
    command.add_argument("--output", type=Path, required=True, metavar="RAW", help="folder to be made or replaced")
    command.add_argument("--clips", type=int, default=64, help="how many (default: 64)")
    command.add_argument("--seed", type=int, default=0, help="what the clips depend on (default: 0)")
    if parts:
        parts.add_synthesize_arguments(command)

    maintenance.add(commands, common)
    return parser.parse_args(argv)


def _add_build(command: ArgumentParser) -> None:
    """Options of ``build`` that all families share."""
    command.add_argument("--input", type=Path, required=True, metavar="RAW", help="folder of the raw data set")
    command.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="SHARDS",
        help="folder to be made; a build that was stopped there goes on",
    )
    add_options(command, [BuildOptions])


def execute(arguments: Namespace) -> tuple[dict[str, Any], int]:
    """Run the command; returns its result and the exit code."""
    match arguments.command:
        case "build":
            return _build(arguments), 0
        case "synthesize":
            return builder(arguments.family).synthesize(arguments, track), 0
    return maintenance.execute(arguments)


def _build(arguments: Namespace) -> dict[str, Any]:
    worker_rank = WorkerRank.detect()
    options = read_options(arguments, BuildOptions)
    try:
        # Side by side on one terminal, the bars of several processes could not be read.
        report = build(
            builder(arguments.family).job(arguments),
            arguments.output,
            options,
            untracked if worker_rank.local else track,
            worker_rank,
        )
    except (ValueError, OSError) as error:
        if worker_rank.rank:  # the scripts print the errors of rank 0 only, but here each worker has its own
            print(f"{worker_rank}: {error}", file=sys.stderr, flush=True)
        raise
    return report.as_dict()


def render(command: str, result: dict[str, Any]) -> None:
    """Print a result for people."""
    if command == "build":
        Console().print(summary_table(build_summary(result)))
    elif command == "synthesize":
        Console().print(summary_table(result))
    else:
        maintenance.render(command, result)
