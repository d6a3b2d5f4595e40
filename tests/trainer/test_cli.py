import errno
import json
import os
import subprocess
import sys
from typing import Annotated

import pytest
import torch
from pydantic import TypeAdapter
from typer import Option, TyperException

from stagecoach.data.files import DamagedError, check_directory
from stagecoach.data.local_files import UnreachableError
from stagecoach.trainer.cli import Outcome, RecipeFlags, command, invoke, json_output, run_main, single
from stagecoach.trainer.interrupt import PEER_LOST
from stagecoach.trainer.recipe import ROOT
from stagecoach.trainer.settings import RecipeError


def outcome(function) -> int:
    with pytest.raises(SystemExit) as caught:
        run_main(function)
    return caught.value.code


def raiser(error: BaseException):
    def function():
        raise error

    return function


@pytest.fixture(autouse=True)
def single_process(monkeypatch):
    for name in ("RANK", "SLURM_STEP_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


def load(*words: str, reads_data: bool = True):
    """The recipe and the flag of its own of a command that takes a recipe."""

    @command()
    def probe(recipe: RecipeFlags, dry_run: Annotated[bool, Option("--dry-run")] = False) -> Outcome:
        return Outcome((recipe.load(reads_data), dry_run))

    outcome = invoke(single(probe, "x"), words)
    return outcome.result if isinstance(outcome, Outcome) else outcome


def test_the_command_line_gives_a_recipe_and_the_rest(recipe_file):
    words = ["--recipe", str(recipe_file), "--set", "seed=3", "--set", "stages.1.steps=9", "--data", "tars"]
    recipe, dry_run = load(*words, "--run", "there", "--dry-run")
    assert (recipe.seed, recipe.stages[1].steps, recipe.data, recipe.run) == (3, 9, "tars", "there")
    assert dry_run is True
    assert load(*words)[1] is False


@pytest.mark.parametrize("spelling", ["--local_rank=1", "--local-rank=1"])
def test_what_the_deepspeed_launcher_adds_is_accepted(recipe_file, spelling):
    recipe, _ = load(spelling, "--recipe", str(recipe_file))
    assert recipe == load("--recipe", str(recipe_file))[0]


def test_a_bare_command_means_the_default_profile_of_fantasy_world():
    recipe, _ = load("--data", "shards")
    assert (recipe.family, recipe.profile, recipe.size) == ("fantasy_world", "default", "wan2.1-1.3b")


def test_a_profile_and_a_file_exclude_each_other_and_flags_are_not_abbreviated(recipe_file, capsys):
    for words, expected in (
        (["--recipe", str(recipe_file), "--profile", "default"], "--profile is not allowed with --recipe"),
        (["--fam", "x"], "No such option: --fam"),
    ):
        assert outcome(lambda words=words: load(*words)) == 2
        assert expected in capsys.readouterr().err


def test_an_empty_value_is_refused_and_not_taken_for_the_recipes_own(recipe_file):
    for flag in ("--data", "--run", "--size", "--family"):
        with pytest.raises(TyperException, match=f"{flag} is empty"):
            load("--recipe", str(recipe_file), flag, "")


def test_a_command_that_reads_shards_asks_for_them(recipe_file, recipe_values):
    import yaml

    del recipe_values["data"]
    recipe_file.write_text(yaml.safe_dump(recipe_values))
    with pytest.raises(RecipeError, match="expected --data SHARDS"):
        load("--recipe", str(recipe_file))
    assert load("--recipe", str(recipe_file), reads_data=False)[0].data == ""


def test_success_and_a_chosen_code_are_the_exit_code():
    assert outcome(lambda: None) == 0
    assert outcome(lambda: 75) == 75


def test_a_mistake_of_the_user_is_one_sentence_and_code_1(tmp_path, recipe_file, capsys):
    def missing_file():
        (tmp_path / "nothing").read_text()

    def refused_recipe():
        load("--recipe", str(recipe_file), "--set", "sed=1")

    for function, words in (
        (refused_recipe, "unknown key sed"),
        (lambda: check_directory(tmp_path), "no readable manifest"),
        (lambda: TypeAdapter(int).validate_python("x"), "validation error"),
    ):
        assert outcome(function) == 1
        captured = capsys.readouterr()
        assert words in captured.err
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert captured.out == ""
    # Raised by a test, that is not by the project.
    assert outcome(missing_file) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_nobody_expected_shows_its_traceback(capsys):
    for error in (RuntimeError("boom"), KeyError("boom"), ValueError("from outside the project")):
        assert outcome(raiser(error)) == 1
        captured = capsys.readouterr()
        assert "Traceback" in captured.err
        assert str(error) in captured.err


def test_a_broken_pipe_inside_a_command_shows_its_traceback_instead_of_ending_without_a_word(capsys):
    @command()
    def broken() -> Outcome:
        raise BrokenPipeError(32, "Broken pipe")

    assert outcome(lambda: invoke(single(broken, "help"), [])) == 1
    assert "BrokenPipeError" in capsys.readouterr().err


def test_an_error_inside_a_dependency_is_not_taken_for_the_users(capsys):
    def inside_json():
        json.loads("{")

    def inside_numpy():
        import numpy as np

        np.concatenate([np.zeros(1), np.zeros((1, 1))])

    for function in (inside_json, inside_numpy):
        assert outcome(function) == 1
        assert "Traceback" in capsys.readouterr().err


def test_an_interruption_is_130(capsys):
    assert outcome(raiser(KeyboardInterrupt())) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_only_rank_0_speaks_before_the_ranks_have_joined(recipe_file, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert outcome(lambda: load("--recipe", str(recipe_file), "--set", "sed=1")) == 1
    assert capsys.readouterr().err == ""


def test_after_joining_another_rank_says_what_befell_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert outcome(lambda: check_directory(tmp_path)) == 1
    assert capsys.readouterr().err.startswith("error on rank 3: ")


def test_another_ranks_failure_is_reported_by_rank_0_alone(capsys, monkeypatch):
    from stagecoach.trainer.distributed import FirstRankError

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    for rank, expected in (("0", "error: rank 3: it broke\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert outcome(raiser(FirstRankError("rank 3: it broke"))) == 1
        assert capsys.readouterr().err == expected


def test_json_is_alone_on_the_standard_output(capfd):
    with json_output(True) as emit:
        print("a library talks")
        os.system("echo a child process talks")
        emit({"b": 1, "a": [1, 2]})
        print("and again")
    print("afterwards")
    captured = capfd.readouterr()
    assert captured.out == '{"a": [1, 2], "b": 1}\nafterwards\n'
    for words in ("a library talks", "a child process talks", "and again"):
        assert words in captured.err


def test_without_json_the_output_is_left_alone(capfd):
    with json_output(False) as emit:
        print("text")
        emit({"a": 1})
    assert capfd.readouterr().out == "text\n"


def test_only_rank_0_writes_json(capfd, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with json_output(True) as emit:
        emit({})
    assert capfd.readouterr().out == ""


def test_the_output_is_given_back_after_an_error(capfd):
    with pytest.raises(DamagedError), json_output(True):
        raise DamagedError("x")
    print("back")
    assert capfd.readouterr().out == "back\n"


def test_help_comes_without_importing_torch():
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from stagecoach.launch.commands import app; "
        "from stagecoach.trainer.cli import invoke; invoke(app, ['train', '--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'deepspeed', 'av')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(ROOT)], check=False).returncode == 0


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "gone"), OSError(errno.ESTALE, "gone"), torch.AcceleratorError("ECC")]
)
def test_a_fault_of_the_machine_is_not_noted_as_an_error_that_would_happen_again(monkeypatch, tmp_path, capsys, error):
    monkeypatch.setenv("STAGECOACH_STATE", str(tmp_path))

    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        run_main(fail)
    assert left.value.code == PEER_LOST
    assert list(tmp_path.iterdir()) == []
    assert "a fault of this machine" in capsys.readouterr().err


def test_a_store_or_a_file_system_that_gives_no_answer_is_worth_another_start(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("STAGECOACH_STATE", str(tmp_path))

    def fail() -> None:
        raise UnreachableError("https://host/shards: no answer, expected one")

    with pytest.raises(SystemExit) as left:
        run_main(fail)
    assert left.value.code == PEER_LOST
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == "error: https://host/shards: no answer, expected one\n"

    def refuse() -> None:
        raise UnreachableError("/shards: may not be read") from PermissionError()

    with pytest.raises(SystemExit) as left:
        run_main(refuse)
    assert left.value.code == 1
