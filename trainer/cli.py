"""The command line, the same for every script of ``launch/``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
from pydantic import ValidationError

from stagecoach.trainer.recipe import Recipe, load_recipe
from stagecoach.trainer.settings import FirstRankError, RecipeError


def build_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--family", help="model family (default: fantasy_world)")
    parser.add_argument("--size", help="size of the family, instead of the recipe's")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--profile", help="launch/recipes/<family>/<profile>.yaml (default: default)")
    source.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe file, such as a run's recipe.yaml")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="A.B=C",
        help="override one value of the recipe; repeatable",
    )
    parser.add_argument("--data", metavar="SHARDS", help="folder of the shards")
    parser.add_argument("--run", metavar="DIR", help="folder of the run (default: runs/<family>/<profile>)")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="go on from the newest valid checkpoint, from none, or from this one (default: auto)",
    )
    parser.add_argument(
        "--init",
        type=Path,
        metavar="ADAPTER",
        help="adapter that the stage starts from, instead of the one that the stage before left in the run",
    )
    parser.add_argument(
        "--allow-random-init",
        action="store_true",
        help="draw pretrained weights that the recipe names no file for at random, for tests and "
        "benchmarks, instead of refusing to start",
    )
    parser.add_argument("--dry-run", action="store_true", help="build everything and run one step on one sample")
    parser.add_argument("--json", action="store_true", help="write JSON and nothing else to the standard output")
    # The deepspeed launcher passes it; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def parse(
    argv: Sequence[str] | None = None,
    description: str = "",
    reads_data: bool = True,
    parser: argparse.ArgumentParser | None = None,
) -> tuple[Recipe, argparse.Namespace]:
    """The recipe that a command line asks for, and its other arguments (``parser``: that of ``build_parser`` with
    arguments of a script's own). Raises ``RecipeError``, also where the shards of a command that ``reads_data`` are
    not named."""
    arguments = (parser or build_parser(description)).parse_args(argv)
    overrides = [*arguments.overrides, *["model.allow_random_init=true"] * arguments.allow_random_init]
    recipe = load_recipe(
        recipe=arguments.recipe,
        family=arguments.family,
        size=arguments.size,
        profile=arguments.profile,
        overrides=overrides,
        data=arguments.data,
        run=arguments.run,
    )
    if reads_data and not recipe.data:
        raise RecipeError("data: no shards named, expected --data SHARDS, a folder that launch/build_shards.py wrote")
    return recipe, arguments


def run_main(function: Callable[[], int | None]) -> NoReturn:
    """Run a script's ``main`` and exit with what it returns.

    A mistake of the user (a ``ValueError`` or ``OSError`` that this project's code raised, or a pydantic error) becomes
    one sentence on the standard error and exit code 1, an interruption 130; anything else shows its traceback. Rank 0
    speaks for all, but for an error that befell another rank after they had joined.
    """
    try:
        code = function() or 0
    except KeyboardInterrupt:
        _say("interrupted")
        code = 130
    except Exception as error:
        if not _is_expected(error):
            traceback.print_exc()
        else:
            _say(_one_line(error), elsewhere=isinstance(error, FirstRankError))
        code = 1
    sys.stdout.flush()
    sys.exit(code)


@contextmanager
def json_output(wanted: bool) -> Iterator[Callable[[Any], None]]:
    """Give a function that writes one JSON object to the standard output (on rank 0), and while the block runs send
    to the standard error all else that is printed there, also by libraries and child processes.

    Where JSON is not ``wanted`` the function and the block do nothing.
    """
    if not wanted:
        yield lambda value: None
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)

    def emit(value: Any) -> None:
        if _rank() == 0:
            with os.fdopen(os.dup(kept), "w") as out:
                out.write(json.dumps(value, sort_keys=True) + "\n")

    try:
        # The first for child processes and native code, the second for whoever has replaced sys.stdout.
        with redirect_stdout(sys.stderr):
            yield emit
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _rank() -> int:
    """Rank by the launchers' variables; those of Slurm count inside a job step only."""
    in_step = "SLURM_STEP_ID" in os.environ
    return int(os.environ.get("RANK") or (in_step and os.environ.get("SLURM_PROCID")) or 0)


def _say(sentence: str, elsewhere: bool = False) -> None:
    rank = _rank()
    if rank == 0:
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    elif not elsewhere and dist.is_available() and dist.is_initialized():
        print(f"error on rank {rank}: {sentence}", file=sys.stderr, flush=True)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    return " ".join(str(error).split())


def _is_expected(error: BaseException) -> bool:
    """Whether an error is the user's: pydantic's, the trainer's word that another rank failed, or a ``ValueError`` or
    ``OSError`` raised by a line of this project (or by the standard library for it), not inside a dependency."""
    if isinstance(error, ValidationError | FirstRankError):
        return True
    if not isinstance(error, ValueError | OSError):
        return False
    paths = sysconfig.get_paths()
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        if frame.f_globals.get("__name__", "").startswith("stagecoach."):
            return True
        in_library = file.is_relative_to(paths["stdlib"]) and not file.is_relative_to(paths["purelib"])
        if not in_library and not str(file).startswith("<frozen"):
            return False
    return False
