"""The commands that go from trained weights to files. As the others, they look at what they are given before torch is
imported."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stagecoach.data.paths import expand_path
from stagecoach.launch.paths import check_writable, on_each_node
from stagecoach.trainer.cli import Outcome, command
from stagecoach.trainer.environment import check_environment
from stagecoach.trainer.generating.columns import BASE, Column, columns_of_run, parse_column
from stagecoach.trainer.generating.listing import Listed, read_requests
from stagecoach.trainer.reporting.logs import process_rank
from stagecoach.trainer.settings import RecipeError, parse_override
from stagecoach.trainer.waiting import waiting

if TYPE_CHECKING:  # imports torch, which --help and shell completion do without
    from stagecoach.models.generation import GenerationOptions
    from stagecoach.trainer.distributed import World
    from stagecoach.trainer.generating.sample import Summary

log = logging.getLogger(__name__)


@dataclass
class RequestFlags:
    """What is asked for: a file, or one request in flags, whose names are those of its fields."""

    requests: Annotated[
        Path | None, typer.Option(metavar="FILE", help=".jsonl, one request a line, or .json, one or a list of them")
    ] = None
    prompt: Annotated[str | None, typer.Option(help="instead of a file: one request, of this and the next fields")] = (
        None
    )
    negative_prompt: Annotated[str | None, typer.Option(help="what to lead away from")] = None
    image: Annotated[str | None, typer.Option(metavar="FILE", help="first frame of a video")] = None
    camera: Annotated[str | None, typer.Option(metavar="PRESET|FILE", help="such as orbit:degrees=30")] = None
    video: Annotated[str | None, typer.Option(metavar="FILE", help="whose geometry is read")] = None
    song: Annotated[str | None, typer.Option(metavar="FILE", help="what is danced to")] = None
    photo: Annotated[str | None, typer.Option(metavar="FILE", help="of the dancer")] = None
    frames: Annotated[int | None, typer.Option()] = None
    height: Annotated[int | None, typer.Option()] = None
    width: Annotated[int | None, typer.Option()] = None
    set_fields: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="any other field; repeatable")
    ] = None

    def listed(self) -> list[Listed]:
        """The entries. Raises ``ValueError`` for a file that cannot be read."""
        own: dict[str, Any] = {
            entry.name: value
            for entry in fields(self)
            if entry.name not in ("requests", "set_fields") and (value := getattr(self, entry.name)) is not None
        }
        for text in self.set_fields or ():
            path, value = parse_override(text)
            if len(path) > 1:
                raise RecipeError(f"--set {text}: expected a field and its value, as fps=24")
            own[str(path[0])] = value
        if (self.requests is None) == (not own):
            found = "both" if own else "neither"
            raise typer.BadParameter(f"{found} of --requests and fields (--prompt, ...) given, expected one of them")
        if self.requests is not None:
            return read_requests(_path(self.requests))
        return [Listed("the command line", Path(), "sample", own)]


@dataclass
class OptionFlags:
    """How it is made, but for the weights."""

    base: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR|SETTING=PATH",
            help="where the base lies now, if not where it was trained on; for a family of several, each by the "
            "setting of its config; repeatable",
        ),
    ] = None
    components: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder with vae, text_encoder, tokenizer, ... in it")
    ] = None
    vae: Annotated[Path | None, typer.Option(metavar="DIR", help="instead of the one in --components")] = None
    text_encoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the same; the tokenizer next to it is taken with it")
    ] = None
    component: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="any other part, such as image_encoder; repeatable")
    ] = None
    steps: Annotated[
        int | None, typer.Option(min=1, help="where a request does not say; the family's if not given")
    ] = None
    guidance: Annotated[float | None, typer.Option(min=0, help="the same")] = None
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"] | None, typer.Option(help="bf16 on a GPU, else fp32, if not given")
    ] = None
    offload: Annotated[bool, typer.Option("--offload", help="on the GPU only the part that computes")] = False
    quantize: Annotated[Literal["int8", "fp8"] | None, typer.Option(help="keep the base's linear layers in 8 bits")] = (
        None
    )
    vae_tiling: Annotated[bool, typer.Option("--vae-tiling", help="decode in tiles, for cards of 24 GB")] = False
    expect_ranks: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="refuse to start where the launcher started fewer ranks")
    ] = None

    def check(self) -> None:
        """Raise ``ValueError`` for a path that is not there."""
        given = [
            ("--components", self.components),
            *((f"component {name}", path) for name, path in self.parts().items()),
        ]
        given += [(f"--base {text}", Path(text.partition("=")[2] or text)) for text in self.base or ()]
        for flag, path in given:
            if path is not None and not _path(path).exists():
                raise ValueError(f"{flag}: {path} is not there, expected weights that this host sees")

    def parts(self) -> dict[str, Path]:
        found = {name: path for name in ("vae", "text_encoder") if (path := getattr(self, name)) is not None}
        for text in self.component or ():
            name, equals, path = text.partition("=")
            if not equals or not name or not path:
                raise typer.BadParameter(f"--component {text}, expected NAME=PATH")
            found[name] = Path(path)
        return {name: _path(path) for name, path in found.items()}

    def bases(self) -> str | dict[str, str] | None:
        """As ``load_network`` takes them."""
        given = [text.partition("=") for text in self.base or ()]
        if len(given) == 1 and not given[0][1]:
            return str(_path(given[0][0]))
        if any(not equals for _, equals, _ in given):
            raise typer.BadParameter("--base is given several times, expected SETTING=PATH then")
        return {name: str(_path(path)) for name, _, path in given} or None

    def options(self, world: "World", seed: int = 0) -> "GenerationOptions":
        import torch

        from stagecoach.models.generation import GenerationOptions

        names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        dtype = self.dtype or ("fp32" if world.device.type == "cpu" else "bf16")
        return GenerationOptions(
            base=self.bases(),
            components=self.parts(),
            parts=None if self.components is None else _path(self.components),
            steps=self.steps,
            guidance=self.guidance,
            seed=seed,
            dtype=names[dtype],
            device=world.device,
            offload=self.offload,
            quantize=self.quantize,
            vae_tiling=self.vae_tiling,
        )


Remake = Annotated[
    bool, typer.Option("--remake", help="make answers again that were made with other settings, instead of refusing")
]
Family = Annotated[str | None, typer.Option(help="of the base, where no adapter says")]
Size = Annotated[str | None, typer.Option(help="the same")]


def _show(result: dict[str, Any] | None) -> None:
    if result is None or process_rank():  # asked to stop, which has been said, or not the one that speaks
        return
    counts = ", ".join(f"{len(result[name])} {name}" for name in ("made", "kept", "failed"))
    print(f"{result['output']}: {counts}")


@command(_show)
def sample(
    adapter: Annotated[
        str,
        typer.Option(
            metavar="DIR|FILE|base",
            help="a run's stage<N>/adapter, one of its checkpoints, an exported file, a file that the method's authors "
            "published, or base for no adapter",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="folder for the answers, one folder each")],
    flags: OptionFlags,
    asked: RequestFlags,
    which: Annotated[
        Literal["raw", "average"], typer.Option(help="of a checkpoint, the weights or their moving average")
    ] = "raw",
    predecessor: Annotated[
        Path | None,
        typer.Option(metavar="ADAPTER", help="what a checkpoint's stage started from, where the run does not hold it"),
    ] = None,
    family: Family = None,
    size: Size = None,
    seed: Annotated[int, typer.Option(min=0, help="of the noise, with a request's id; where it does not say")] = 0,
    remake: Remake = False,
) -> Outcome:
    """Answer requests with trained weights, in this process or in each of those that a launcher started."""
    listed = _looked(flags, asked, output, lambda: _check_weights("--adapter", adapter, predecessor))

    def work(world: "World") -> "Summary":
        from stagecoach.trainer.generating.sample import Chosen, locked_output
        from stagecoach.trainer.generating.sample import sample as answer_all

        weights = adapter if adapter == BASE else str(_path(adapter))
        before = None if predecessor is None else _path(predecessor)
        chosen = Chosen(weights, "ema" if which == "average" else "raw", before, family, size)
        folder = _path(output)
        with locked_output(world, folder):
            return answer_all(world, chosen, flags.options(world, seed), listed, _Place(folder), remake)

    return _run(work, output)


@command(_show)
def compare(
    output: Annotated[Path, typer.Option(metavar="DIR", help="folder for compare.html and the samples")],
    flags: OptionFlags,
    asked: RequestFlags,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]WEIGHTS[:average]",
            help="weights as --adapter of sample takes them, base too, of a checkpoint its average; repeatable",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="columns of a run: base, its stages, the newest checkpoint's average"),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="N,...", help="a row for each request and seed")] = "0",
    title: Annotated[str, typer.Option(help="of the page")] = "Comparison",
    family: Family = None,
    size: Size = None,
    remake: Remake = False,
) -> Outcome:
    """Answer the same requests with several weights and write one page of all answers."""
    numbers, columns = _seeds(seeds), [] if run is None else columns_of_run(_path(run))
    columns += [parse_column(text) for text in column or ()]
    if len({each.folder for each in columns}) < max(len(columns), 1):
        raise typer.BadParameter("no two columns of one name, and at least one, expected: --column NAME=WEIGHTS, --run")

    def check() -> None:
        for each in columns:
            _check_weights("--column", each.weights, None)

    listed = _looked(flags, asked, output, check)
    named = [Column(c.name, c.weights if c.weights == BASE else str(_path(c.weights)), c.which) for c in columns]

    def work(world: "World") -> "Summary":
        from stagecoach.trainer.generating.compare import compare as compare_all
        from stagecoach.trainer.generating.sample import Chosen

        chosen = Chosen(BASE, family=family, size=size)
        return compare_all(world, named, chosen, flags.options(world), listed, _path(output), numbers, remake, title)

    return _run(work, output)


@dataclass(frozen=True)
class _Place:
    """Where the answer of a request lies."""

    output: Path

    def __call__(self, request: Any) -> Path:
        return self.output / request.id


def _looked(flags: OptionFlags, asked: RequestFlags, output: Path, check: Callable[[], None]) -> list[Listed]:
    """The requests, once paths and ranks have been looked at."""
    check_environment(flags.expect_ranks)

    def look() -> list[Listed]:
        check()
        flags.check()
        check_writable(_path(output))
        return asked.listed()

    return on_each_node(look)


def _run(work: Callable[["World"], "Summary"], output: Path) -> Outcome:
    with waiting("PyTorch and DeepSpeed to be imported"):
        from stagecoach.trainer.distributed import start, stop
    from stagecoach.trainer.interrupt import EXIT_CODE, Interrupted

    try:
        found = work(start())
    except Interrupted as interruption:
        log.warning(interruption)
        stop()
        return Outcome(code=EXIT_CODE)
    stop()
    result = {"output": str(output), "made": found.made, "kept": found.kept, "failed": found.failed}
    return Outcome(result, 1 if found.failed else 0)


def _check_weights(flag: str, weights: str, predecessor: Path | None) -> None:
    if weights != BASE and not _path(weights).exists():
        raise ValueError(
            f"{flag} {weights}: there is nothing, expected an adapter, a checkpoint, an exported file or base"
        )
    if predecessor is not None and not _path(predecessor).exists():
        raise ValueError(f"--predecessor {predecessor}: there is nothing, expected an adapter")


def _seeds(words: str) -> list[int]:
    try:
        numbers = [int(word) for word in words.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise typer.BadParameter(f"--seeds {words!r}, expected different numbers with commas between them, as 0,1")
    return numbers


def _path(text: str | Path) -> Path:
    return Path(expand_path(str(text)))
