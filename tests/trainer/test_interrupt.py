"""A signal before the first step leaves at once with 75, even out of a call that does not return."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from stagecoach.trainer.interrupt import EXIT_CODE, signals_held
from tests.tiny_data import ROOT


def run(body: str, number: signal.Signals) -> subprocess.Popen:
    head = "import os, sys, time\nfrom stagecoach.trainer.interrupt import StopRequest, leave_on_signals\n"
    code = head + textwrap.dedent(body)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    return process


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_before_the_first_step_leaves_with_75_and_says_so(number):
    body = 'leave_on_signals()\nwith StopRequest():\n    print("ready", flush=True)\n    time.sleep(60)\n'
    process = run(body, number)
    assert process.wait(5) == EXIT_CODE
    assert f"leaves on {number.name} with exit code 75" in process.stderr.read()


def test_a_call_that_does_not_come_back_to_the_interpreter_does_not_hold_it_up():
    # It lets other threads run, as a rendezvous does. One call of sleep is ended by the signal.
    body = """
    import ctypes
    leave_on_signals()
    print("ready", flush=True)
    ctypes.CDLL(None).system(b"trap : USR1; sleep 60")
    """
    assert run(body, signal.SIGUSR1).wait(5) == EXIT_CODE


def test_once_steps_are_made_a_signal_is_remembered_for_the_step_boundary():
    body = """
    leave_on_signals()
    with StopRequest() as stop:
        stop.at_once(False)
        print("ready", flush=True)
        while stop.received is None:
            time.sleep(0.01)
        time.sleep(0.2)
        print(stop.received, flush=True)
        stop.at_once(True)
        time.sleep(0.2)
    sys.exit(3)
    """
    process = run(body, signal.SIGUSR1)
    assert process.stdout.readline() == "SIGUSR1\n"
    assert process.wait(5) == 3


def test_a_signal_to_a_forked_child_is_not_taken_for_one_to_the_run():
    body = """
    leave_on_signals()
    child = os.fork()
    if child == 0:
        time.sleep(60)
    os.kill(child, 15)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -15
    with StopRequest() as stop:
        stop.at_once(False)
        print("ready", flush=True)
        time.sleep(0.3)
        sys.exit(4 if stop.received else 5)
    """
    assert run(body, signal.SIGUSR1).wait(5) == 4


SCRIPTS = [f"launch/{name}.py" for name in ("stage1", "stage2", "stage3", "stage4", "pipeline")]


@pytest.mark.parametrize("words", [*([script] for script in SCRIPTS), ["-m", "stagecoach", "train"]], ids=" ".join)
def test_a_signal_during_the_first_imports_of_a_command_leaves_with_75(words, tmp_path):
    """``typer`` is the first package of others that the commands import; here it never comes back."""
    (tmp_path / "typer.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, *words, "--data", "shards"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n", process.communicate()
    process.send_signal(signal.SIGUSR1)
    assert process.wait(5) == EXIT_CODE
    assert "leaves on SIGUSR1 with exit code 75" in process.stderr.read()


def test_a_child_that_was_started_while_signals_are_held_goes_on_when_it_gets_one():
    with signals_held():
        shielded = subprocess.Popen(["sleep", "0.5"])
    other = subprocess.Popen(["sleep", "0.5"])
    for process in (shielded, other):
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGTERM)
    assert shielded.wait(5) == 0
    assert other.wait(5) in (-signal.SIGUSR1, -signal.SIGTERM)
