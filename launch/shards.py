"""The commands that build shards, look at finished ones, repair them or adopt those of others.

Flags of ``annotate``, ``build`` and ``synthesize`` depend on ``--family``; the others do without a family's packages.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup
from typer.main import get_command

from stagecoach.data.annotation.preview import draw_previews
from stagecoach.data.annotation.run import AnnotateOptions, annotators
from stagecoach.data.annotation.run import annotate as annotate_raw
from stagecoach.data.builders import BUILDERS, builder
from stagecoach.data.building.build import build as build_shards
from stagecoach.data.building.jobs import EncodingJob
from stagecoach.data.building.options import BuildOptions
from stagecoach.data.building.worker_rank import WorkerRank
from stagecoach.data.files import atomic_file
from stagecoach.data.maintenance import check as checking
from stagecoach.data.maintenance import inspect as inspecting
from stagecoach.data.maintenance import repair as repairing
from stagecoach.data.maintenance.indexing import family_schema, index_folder, schema_of
from stagecoach.data.progress import MEGABYTE, build_summary, summary_table, track, untracked
from stagecoach.trainer.cli import Outcome, command, new_app, single

log = logging.getLogger(__name__)

DEFAULT_FAMILY = "fantasy_world"
BAR = 30
"""Characters of the longest bar of a histogram."""
if TYPE_CHECKING:
    FamilyName = str
else:
    FamilyName = Literal[tuple(sorted(BUILDERS))]
FamilyFlag = Annotated[FamilyName, typer.Option(help="whose data; each family adds flags of its own below")]
Shards = Annotated[Path, typer.Argument(metavar="SHARDS", help="folder of shards, or of its splits")]
Jobs = Annotated[int | None, typer.Option(metavar="N", help="processes; one per CPU where not given")]
SchemaFrom = Annotated[Path | None, typer.Option(metavar="SHARDS", help="shards that have the schema")]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="leave bad items out and list them in skipped.jsonl; else the first one stops"),
]


@dataclass
class BuildFlags:
    """Where ``build`` reads and writes."""

    input: Annotated[Path, typer.Option(metavar="RAW", help="folder of the raw data set")]
    output: Annotated[
        Path, typer.Option(metavar="SHARDS", help="folder to be made; a build that was stopped there goes on")
    ]
    family: FamilyFlag = DEFAULT_FAMILY


def build_command(family: str) -> Callable[..., Outcome]:
    """``build`` with the flags of a family."""
    parts = builder(family)

    @command(lambda result: Console().print(summary_table(build_summary(result))), own=parts.options)
    def build(paths: BuildFlags, options: BuildOptions, own: Any) -> Outcome:
        worker_rank = WorkerRank.detect()
        try:
            # Side by side on one terminal, the bars of several processes could not be read.
            bars = untracked if worker_rank.local else track
            job = parts.make_job(paths.input, *own)
            if isinstance(job, EncodingJob):
                job.annotators = annotators(paths.input)
            return Outcome(build_shards(job, paths.output, options, bars, worker_rank).as_dict())
        except (ValueError, OSError) as error:
            if worker_rank.rank:  # the commands print the errors of rank 0 only, but here each worker has its own
                log.error("%s: %s", worker_rank, error)
            raise

    return build


@dataclass
class AnnotateFlags:
    """Where ``annotate`` reads and writes."""

    input: Annotated[Path, typer.Option(metavar="RAW", help="folder of videos or pictures")]
    output: Annotated[
        Path | None,
        typer.Option(metavar="RAW2", help="folder of the raw data set that is made; where not given, RAW itself"),
    ] = None
    family: FamilyFlag = DEFAULT_FAMILY
    preview: Annotated[
        Path | None, typer.Option(metavar="DIR", help="also draw what was found over the frames, a picture per item")
    ] = None


def annotate_command(family: str) -> Callable[..., Outcome]:
    """``annotate`` with the flags of a family."""
    parts = builder(family)

    @command(lambda result: Console().print(summary_table(result)), own=parts.annotate_options)
    def annotate(paths: AnnotateFlags, options: AnnotateOptions, own: Any) -> Outcome:
        worker_rank = WorkerRank.detect()
        job = parts.make_annotate_job(paths.input, paths.output or paths.input, *own)
        report = annotate_raw(job, options, untracked if worker_rank.local else track, worker_rank)
        if paths.preview and not report.missing:
            draw_previews(job, paths.preview)
        return Outcome(report.as_dict())

    return annotate


def synthesize_command(family: str) -> Callable[..., Outcome]:
    """``synthesize`` with the flags of a family."""
    parts = builder(family)
    kinds = [parts.synthetic_options] if parts.synthetic_options else []
    text = f"also write tiny encoders, fitted to the raw data: {parts.tiny_encoders or 'none'} below DIR"
    encoders_flag = Annotated[Path | None, typer.Option(metavar="DIR", help=text)]

    @command(lambda result: Console().print(summary_table(result)), own=kinds, encoders=encoders_flag)
    def synthesize(
        own: Any,
        output: Annotated[Path, typer.Option(metavar="RAW", help="folder to be made or replaced")],
        family: FamilyFlag = DEFAULT_FAMILY,
        clips: Annotated[int, typer.Option(help="how many")] = 64,
        seed: Annotated[int, typer.Option(help="what the clips depend on")] = 0,
        encoders: Path | None = None,
    ) -> Outcome:
        parts.write_raw(
            output, clips, seed, own[0] if own else None, lambda numbers: track(numbers, "rendering", clips)
        )
        if encoders:
            parts.write_encoders(output, encoders, seed)
        return Outcome({"output": str(output), parts.items: clips, "encoders": str(encoders) if encoders else None})

    return synthesize


FAMILY_COMMANDS = {"annotate": annotate_command, "build": build_command, "synthesize": synthesize_command}


class ShardCommands(TyperGroup):
    """Makes the commands that depend on a family with the flags of the family that a command line names."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, found, rest = super().resolve_command(ctx, args)
        if name in FAMILY_COMMANDS and found is not None:
            words = [word for argument in rest for word in argument.split("=", 1)]
            named = words[words.index("--family") + 1 :][:1] if "--family" in words else []
            family = named[0] if named and named[0] in BUILDERS else DEFAULT_FAMILY
            found = get_command(single(FAMILY_COMMANDS[name](family), found.help or ""))
        return name, found, rest


app = new_app(cls=ShardCommands, help="Build, check and look at shards.")


@app.command("annotate")
def _annotate() -> None:
    """Find what raw data lacks, by local models."""


@app.command("build")
def _build() -> None:
    """Raw data to shards."""


@app.command("synthesize")
def _synthesize() -> None:
    """Write a small raw data set."""


def _show_check(result: dict[str, Any]) -> None:
    console = Console()
    for problem in result["problems"]:
        console.print(problem, style="red", highlight=False, soft_wrap=True, markup=False)
    console.print(f"{len(result['problems'])} problems" if result["problems"] else "all shards are whole")


@app.command()
@command(_show_check)
def check(shards: Shards, jobs: Jobs = None) -> Outcome:
    """Compare hashes, indices and every sample with what they should be."""
    problems = checking.check(shards, jobs, track)
    return Outcome({"problems": problems}, 1 if problems else 0)


def _show_splits(result: dict[str, Any]) -> None:
    console = Console()
    for name, split in result.items():
        console.print(f"{name}: {split['action']}", style="bold", markup=False)
        rows = {what: value for what, value in split.items() if what != "action" and value != ""}
        console.print(summary_table({w: ", ".join(v) if isinstance(v, list) else v for w, v in rows.items()}))


@app.command()
@command(_show_splits)
def repair(
    shards: Shards,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done and change nothing")] = False,
    schema_from: SchemaFrom = None,
    jobs: Jobs = None,
) -> Outcome:
    """Drop or rebuild what is damaged; --schema-from gives the schema where a damaged manifest has lost it."""
    return Outcome(repairing.repair(shards, dry_run=dry_run, schema_set=schema_from, jobs=jobs, track=track))


@app.command()
@command(_show_splits)
def index(
    tars: Annotated[Path, typer.Argument(metavar="FOLDER", help="folder of tars, or of folders of them (train, val)")],
    family: Annotated[FamilyName | None, typer.Option(help="whose schema the samples must fit")] = None,
    schema_from: SchemaFrom = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="a size of the family's schema, e.g. text_dim=4096; as published where not given; repeatable; a wrong "
            "name lists them all",
        ),
    ] = None,
    skip_bad: SkipBad = False,
    replace: Annotated[bool, typer.Option("--replace", help="index a folder again that is indexed already")] = False,
    any_latent_scale: Annotated[
        bool, typer.Option("--any-latent-scale", help="take latents whose standard deviation is far from 1")
    ] = False,
    jobs: Jobs = None,
) -> Outcome:
    """Make tars that another tool wrote a set of shards, with the schema of --family or of --schema-from."""
    if family is not None and schema_from is None:
        schema = family_schema(family, size or [])
    elif family is None and schema_from is not None:
        if size:
            raise ValueError(
                f"--size {' '.join(size)} next to --schema-from, expected it next to --family only; "
                f"the sizes are those of the shards"
            )
        schema = schema_of(schema_from)
    else:
        raise typer.BadParameter("expected either --family or --schema-from")
    return Outcome(
        index_folder(
            tars, schema, skip_bad=skip_bad, replace=replace, any_latent_scale=any_latent_scale, jobs=jobs, track=track
        )
    )


def _show_inspect(result: dict[str, Any]) -> None:
    for name, split in result.items():
        for part in _split_parts(name, split):
            Console().print(part, highlight=False, soft_wrap=isinstance(part, str), markup=False)


@app.command()
@command(_show_inspect)
def inspect(shards: Shards) -> Outcome:
    """Counts, bytes, histograms of sizes and lengths."""
    return Outcome(inspecting.inspect(shards, track))


@app.command()
@command(lambda result: Console().print(summary_table(result)))
def preview(
    shards: Shards,
    output: Annotated[Path, typer.Option(metavar="PNG")] = Path("preview.png"),
    count: Annotated[int, typer.Option(help="samples to show")] = 16,
) -> Outcome:
    """A sheet of pictures."""
    picture = inspecting.contact_sheet(shards, count)
    with atomic_file(output) as handle:
        Image.fromarray(picture).save(handle, "PNG")
    return Outcome({"output": str(output)})


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
    for column in ("MB", "kB per sample", "std of its channels"):
        fields.add_column(column, justify="right")
    for field, size in split["field_bytes"].items():
        std = split["latent_std"].get(field)
        spread = f"{min(std):.3g} to {max(std):.3g}" if std else ""
        fields.add_row(field, f"{size / MEGABYTE:.2f}", f"{size / split['samples'] / 1e3:.1f}", spread)
    encoders = Table(show_header=False, box=None)
    for role, entry in split["encoders"].items():
        encoders.add_row(
            role,
            str(entry)
            if not isinstance(entry, dict)
            else ", ".join(f"{what} {str(value)[:40]}" for what, value in entry.items()),
        )
    described = [summary_table(split["described"])] if split["described"] else []
    histograms = {"bytes per sample": split["sample_bytes"], **split["dims"]}
    bars = [_bars(title, found) for title, found in histograms.items() if found]
    return [title, fields, *described, encoders if split["encoders"] else "no encoders are named", *bars]


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
