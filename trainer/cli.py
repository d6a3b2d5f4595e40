"""What all commands share: flags as dataclasses, the recipe they name, JSON, and how errors reach people."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from typer.completion import completion_init
from typer.main import get_command

from stagecoach.data.local_files import UnreachableError
from stagecoach.data.paths import expand_path
from stagecoach.trainer.environment import NodeError
from stagecoach.trainer.flags import expand
from stagecoach.trainer.interrupt import PEER_LOST
from stagecoach.trainer.job_state import note_error
from stagecoach.trainer.reporting.logs import log_to_terminal, process_rank
from stagecoach.trainer.settings import OF_THE_MACHINE, FirstRankError, PeerLostError, RecipeError

if TYPE_CHECKING:  # imports torch, which --help and shell completion do without
    from stagecoach.trainer.recipe import Recipe

log = logging.getLogger(__name__)

GLOO = re.compile(r"gloo/transport|Connection (closed|reset) by peer")
"""How gloo, which has no exception of its own, says that it cannot reach a rank."""
JsonFlag = Annotated[bool, typer.Option("--json", help="write JSON and nothing else to the standard output")]


@dataclass
class ModelFlags:
    """Which recipe, and what to override in it."""

    family: Annotated[str | None, typer.Option(help="model family; fantasy_world where no recipe says")] = None
    size: Annotated[str | None, typer.Option(help="size of the family, instead of the recipe's")] = None
    profile: Annotated[
        str | None, typer.Option(help="launch/recipes/<family>/<profile>.yaml; default where no recipe is named")
    ] = None
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="a recipe file, such as a run's recipe.yaml")] = (
        None
    )
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="override one value of the recipe; repeatable")
    ] = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value == "":  # a variable of the shell that is not set, and not a wish for the recipe's own value
                raise typer.BadParameter(f"--{name} is empty, expected a value or no --{name}")

    def load(self) -> Recipe:
        """The recipe. Raises ``RecipeError``."""
        return self._load()

    def _load(self, overrides: Sequence[str] = (), **own: str | None) -> Recipe:
        from stagecoach.trainer.recipe import load_recipe

        if self.profile and self.recipe:
            raise typer.BadParameter("--profile is not allowed with --recipe, expected one of them")
        return load_recipe(
            recipe=self.recipe and Path(expand_path(str(self.recipe))),
            family=self.family,
            size=self.size,
            profile=self.profile,
            overrides=[*(self.overrides or ()), *overrides],
            **own,
        )


@dataclass
class RecipeFlags(ModelFlags):
    """The same of a command that reads shards and a run's folder."""

    data: Annotated[str | None, typer.Option(metavar="SHARDS", help="folder of the shards")] = None
    run: Annotated[
        str | None, typer.Option(metavar="DIR", help="folder of the run; runs/<family>/<profile> where none is named")
    ] = None
    allow_random_init: Annotated[
        bool,
        typer.Option(
            "--allow-random-init",
            help="draw pretrained weights that the recipe names no file for at random, for tests and benchmarks, "
            "instead of refusing to start",
        ),
    ] = False

    def load(self, reads_data: bool = True) -> Recipe:
        """The recipe. Raises ``RecipeError``, also where a command that ``reads_data`` names no shards."""
        random = ["model.allow_random_init=true"] * self.allow_random_init
        recipe = self._load(random, data=self.data, run=self.run)
        if reads_data and not (recipe.data or all(stage.data for stage in recipe.stages.values())):
            raise RecipeError("data: no shards named, expected --data SHARDS, a folder that `shards build` wrote")
        return recipe


@dataclass(frozen=True)
class Outcome:
    """What a command found, as ``--json`` prints it (None: nothing), and its exit code."""

    result: Any = None
    code: int = 0


def command(show: Callable[[Any], None] | None = None, **types: Any) -> Callable[..., Callable[..., Outcome]]:
    """Make a function that returns an ``Outcome`` a command as typer takes it (``flags.expand``).

    ``--json`` is added; without it ``show`` prints the result for people.
    """

    def decorate(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
        @wraps(function)
        def run(*, as_json: JsonFlag = False, **values: Any) -> Outcome:
            with json_output(as_json) as emit:
                try:
                    outcome = flat(**values)
                except (BrokenPipeError, EOFError) as error:  # typer would exit without a word
                    raise RuntimeError(f"{type(error).__name__}: {error}") from error
                if outcome.result is not None:
                    emit(outcome.result)
            if show and not as_json:
                show(outcome.result)
            return outcome

        flat, own = expand(function, types), inspect.signature(run, follow_wrapped=False).parameters["as_json"]
        own = own.replace(annotation=JsonFlag)
        shown = inspect.signature(flat)
        run.__signature__ = shown.replace(parameters=[*shown.parameters.values(), own])  # type: ignore[attr-defined]
        return run

    return decorate


def new_app(**settings: Any) -> typer.Typer:
    """A typer app whose errors are left to ``run_app``, with plain help."""
    settings = {"add_completion": False, "no_args_is_help": True, **settings}
    return typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, **settings)


def single(function: Callable[..., Outcome], help: str) -> typer.Typer:
    """The app of a script that is one command."""
    app = new_app()
    app.command(help=help)(function)
    return app


def invoke(app: typer.Typer, arguments: Sequence[str] | None = None, name: str | None = None) -> Any:
    """What the command returns that ``arguments`` (those of the process where None) name, an exit code where it was
    ended by one (``--help``). Raises ``typer.TyperException`` for a wrong flag."""
    completion_init()
    arguments = sys.argv[1:] if arguments is None else arguments
    # The deepspeed launcher adds it; the environment says the same.
    arguments = [word for word in arguments if not re.fullmatch(r"--local[-_]rank=\d+", word)]
    return get_command(app).main(list(arguments), prog_name=name, standalone_mode=False)


def run_app(app: typer.Typer, name: str | None = None) -> NoReturn:
    """Run the command that the process's arguments name and exit with its code."""

    def run() -> int | None:
        outcome = invoke(app, name=name)
        return outcome.code if isinstance(outcome, Outcome) else outcome

    run_main(run)


def run_main(function: Callable[[], int | None]) -> NoReturn:
    """Run ``function`` and exit with the code that it returns.

    A wrong flag exits with 2. A mistake of the user (a ``ValueError`` or ``OSError`` that this project's code raised,
    or a pydantic error) becomes one sentence on the standard error and exit code 1, an interruption 130; anything else
    shows its traceback. Rank 0 speaks for all, but for an error that befell another rank after they had joined. Where
    another rank is gone without a word, or a GPU or a file system failed under this one or gives no answer, the code is
    ``PEER_LOST``.
    """
    log_to_terminal()
    try:
        code = function() or 0
    except KeyboardInterrupt:
        code = 130
    except typer.TyperException as error:
        if process_rank() == 0:
            error.show()  # type: ignore[attr-defined]
        code = error.exit_code
        note_error(_one_line(error), process_rank())
    except Exception as error:
        code = 1
        if _lost_a_peer(error):
            _say(f"another rank is gone, or cannot be reached any more: {_one_line(error)}")
            code = PEER_LOST
        elif _is_of_the_machine(error):
            log.exception("a fault of this machine, or of a file system: %s", type(error).__name__)
            code = PEER_LOST
        elif type(error) is UnreachableError and not isinstance(error.__cause__, PermissionError):
            _say(_one_line(error))
            code = PEER_LOST
        elif isinstance(error, FirstRankError):
            _say(_one_line(error), elsewhere=True)
        else:
            if _is_expected(error):
                _say(_one_line(error), node=isinstance(error, NodeError))
            else:
                log.exception("unexpected %s", type(error).__name__)
            note_error(f"{type(error).__name__}: {_one_line(error)}", process_rank())
    if code == 130:
        _say("interrupted")
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
        if process_rank() == 0:
            with os.fdopen(os.dup(kept), "w") as out:
                out.write(json.dumps(value, sort_keys=True) + "\n")

    try:
        # The first for child processes and native code, the second for whoever has replaced sys.stdout.
        with redirect_stdout(sys.stderr):
            yield emit
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _say(sentence: str, elsewhere: bool = False, node: bool = False) -> None:
    if process_rank() == 0 or (_has_joined() and not elsewhere) or (node and os.environ.get("LOCAL_RANK") == "0"):
        log.error(sentence)


def _lost_a_peer(error: BaseException) -> bool:
    """Whether a collective failed, or a later error came of one that did."""
    distributed = sys.modules.get("torch.distributed")
    seen: BaseException | None = error
    lost = (PeerLostError, getattr(distributed, "DistError", PeerLostError))
    while seen is not None:
        if isinstance(seen, lost) or (isinstance(seen, RuntimeError) and GLOO.search(str(seen))):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _is_of_the_machine(error: BaseException) -> bool:
    """Whether hardware or a mount failed, so that the same command may succeed, elsewhere maybe."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, OSError) and error.errno in OF_THE_MACHINE


def _has_joined() -> bool:
    """Whether the ranks have met; a process that has not imported torch has not."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


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
