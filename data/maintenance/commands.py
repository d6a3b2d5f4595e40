"""The commands of ``launch/build_shards.py`` that look at finished shards, repair them or adopt those of others.

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

from stagecoach.data.builders import BUILDERS
from stagecoach.data.building.summary import MEGABYTE, summary_table
from stagecoach.data.files import atomic_file
from stagecoach.data.maintenance.check import check
from stagecoach.data.maintenance.indexing import family_schema, index_folder, schema_of
from stagecoach.data.maintenance.inspect import inspect
from stagecoach.data.maintenance.preview import contact_sheet
from stagecoach.data.maintenance.repair import repair
from stagecoach.data.progress import track

BAR = 30
"""Characters of the longest bar of a histogram."""


def add(commands: Any, common: ArgumentParser) -> None:
    """Add each command to ``commands``, what ``ArgumentParser.add_subparsers`` gave; ``common`` are options of all."""
    parallel = ArgumentParser(add_help=False)
    parallel.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per CPU)")

    command = commands.add_parser(
        "check", parents=[common, parallel], help="compare hashes, indices and every sample with what they should be"
    )
    _add_shards(command)

    command = commands.add_parser("repair", parents=[common, parallel], help="drop or rebuild what is damaged")
    _add_shards(command)
    command.add_argument("--dry-run", action="store_true", help="say what would be done and change nothing")
    command.add_argument(
        "--schema-from",
        type=Path,
        metavar="SHARDS",
        help="shards of the same schema, where a damaged manifest has lost it",
    )

    command = commands.add_parser(
        "index", parents=[common, parallel], help="make tars that another's tool wrote a set of shards"
    )
    command.add_argument("tars", type=Path, metavar="FOLDER", help="folder of tars, or of folders of them (train, val)")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--family", choices=sorted(BUILDERS), help="whose schema the samples must fit")
    source.add_argument("--schema-from", type=Path, metavar="SHARDS", help="shards whose schema they must fit")
    command.add_argument(
        "--size",
        action="append",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="sizes of the family's schema, e.g. text_dim=4096 (default: as published; a wrong name lists them all)",
    )
    command.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave bad samples out and list them in skipped.jsonl (default: the first one stops)",
    )
    command.add_argument("--replace", action="store_true", help="index a folder anew that is indexed already")

    command = commands.add_parser("inspect", parents=[common], help="counts, bytes, histograms of sizes and lengths")
    _add_shards(command)

    command = commands.add_parser("preview", parents=[common], help="a sheet of pictures")
    _add_shards(command)
    command.add_argument("--output", type=Path, default=Path("preview.png"), metavar="PNG")
    command.add_argument("--count", type=int, default=16, help="samples to show (default: 16)")


def _add_shards(command: ArgumentParser) -> None:
    command.add_argument("shards", type=Path, metavar="SHARDS", help="folder of shards, or of its splits")


def execute(arguments: Namespace) -> tuple[dict[str, Any], int]:
    """Run the command; returns its result and the exit code."""
    match arguments.command:
        case "check":
            problems = check(arguments.shards, arguments.jobs, track)
            return {"problems": problems}, 1 if problems else 0
        case "repair":
            return repair(
                arguments.shards,
                dry_run=arguments.dry_run,
                schema_set=arguments.schema_from,
                jobs=arguments.jobs,
                track=track,
            ), 0
        case "index":
            sizes = [word for words in arguments.size for word in words]
            if sizes and arguments.schema_from:
                raise ValueError(
                    f"--size {' '.join(sizes)} beside --schema-from, expected it beside --family only; "
                    f"the sizes are those of the shards"
                )
            schema = (
                schema_of(arguments.schema_from) if arguments.schema_from else family_schema(arguments.family, sizes)
            )
            return index_folder(
                arguments.tars,
                schema,
                skip_bad=arguments.skip_bad,
                replace=arguments.replace,
                jobs=arguments.jobs,
                track=track,
            ), 0
        case "inspect":
            return inspect(arguments.shards, track), 0
    picture = contact_sheet(arguments.shards, arguments.count)
    with atomic_file(arguments.output) as handle:
        Image.fromarray(picture).save(handle, "PNG")
    return {"output": str(arguments.output)}, 0


def render(command: str, result: dict[str, Any]) -> None:
    """Print a result for people."""
    console = Console()
    if command == "check":
        for problem in result["problems"]:
            console.print(problem, style="red", highlight=False, soft_wrap=True, markup=False)
        console.print(f"{len(result['problems'])} problems" if result["problems"] else "all shards are whole")
    elif command == "inspect":
        for name, split in result.items():
            for part in _split_parts(name, split):
                console.print(part, highlight=False, soft_wrap=isinstance(part, str), markup=False)
    elif command in ("repair", "index"):
        for name, split in result.items():
            console.print(f"{name}: {split['action']}", style="bold", markup=False)
            console.print(
                summary_table(
                    {
                        what: ", ".join(value) if isinstance(value, list) else value
                        for what, value in split.items()
                        if what != "action" and value != ""
                    }
                )
            )
    else:
        console.print(summary_table(result))


def _split_parts(name: str, split: dict[str, Any]) -> list[str | Table]:
    title = (
        f"{name}: {split['samples']} samples in {split['shards']} shards, {split['bytes'] / MEGABYTE:.1f} MB, "
        f"schema {split['schema']} version {split['version']}, fingerprint {split['fingerprint'][:12]}"
    )
    if split["dropped"]:
        title += f"; {split['dropped']} dropped by repair since its statistics were taken"
    if split["lost"]:
        title += f"; lost: {', '.join(split['lost'])}"
    fields = Table()
    fields.add_column("field")
    for column in ("MB", "kB per sample"):
        fields.add_column(column, justify="right")
    for field, size in split["field_bytes"].items():
        fields.add_row(field, f"{size / MEGABYTE:.2f}", f"{size / split['samples'] / 1e3:.1f}")
    encoders = Table(show_header=False, box=None)
    for role, entry in split["encoders"].items():
        encoders.add_row(
            role,
            str(entry)
            if not isinstance(entry, dict)
            else ", ".join(f"{what} {str(value)[:40]}" for what, value in entry.items()),
        )
    histograms = {"bytes per sample": split["sample_bytes"], **split["dims"]}
    bars = [_bars(title, found) for title, found in histograms.items() if found]
    return [title, fields, encoders if split["encoders"] else "no encoders are named", *bars]


def _bars(title: str, found: dict[str, Any]) -> Table:
    table = Table(
        title=f"{title}: {found['min']} to {found['max']}, mean {found['mean']:.1f}",
        show_header=False,
        box=None,
        title_justify="left",
    )
    most = max(number for _, _, number in found["bins"])
    for low, high, number in found["bins"]:
        table.add_row(str(low) if low == high else f"{low} to {high}", str(number), "█" * round(BAR * number / most))
    return table
