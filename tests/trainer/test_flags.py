"""Flags of the command line follow from dataclasses of options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from typer import TyperException

from stagecoach.data.building.options import Argument
from stagecoach.trainer.cli import Outcome, command, invoke, single


@dataclass(frozen=True)
class Options:
    base: Annotated[Path, Argument("folder")]
    extra: Annotated[Path | None, Argument("another folder")]
    words: Annotated[tuple[int, ...], Argument("numbers", parse=lambda words: [int(w) for w in words], default=["7"])]
    frames: Annotated[int, Argument("of a clip", flag="--segment")] = 81
    kind: Annotated[Literal["one", "two"], Argument("which")] = "one"
    check: Annotated[bool, Argument("whether")] = False
    holdout: float = 0.1


def parse(*words: str) -> Options:
    @command()
    def probe(options: Options) -> Outcome:
        return Outcome(options)

    outcome = invoke(single(probe, "x"), words)
    return outcome.result if isinstance(outcome, Outcome) else outcome


def test_defaults_are_those_of_the_fields():
    assert parse("--base", "a") == Options(Path("a"), None, (7,), 81, "one", False, 0.1)


def test_each_argument_fills_its_field():
    words = ["--base", "a", "--extra", "b", "--words", "1,2", "--segment", "5", "--kind", "two", "--check"]
    assert parse(*words) == Options(Path("a"), Path("b"), (1, 2), 5, "two", True, 0.1)


@pytest.mark.parametrize("words", [(), ("--base", "a", "--kind", "three"), ("--base", "a", "--holdout", "0.2")])
def test_what_is_missing_unknown_or_no_argument_is_refused(words):
    with pytest.raises(TyperException):
        parse(*words)


def test_help_names_the_defaults(capsys):
    assert parse("--help") == 0
    assert "of a clip  [default: 81]" in capsys.readouterr().out
