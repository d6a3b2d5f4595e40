"""A build of an operator that was killed holds nobody up, and who waits for a living one says so."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import torch.utils.cpp_extension

from stagecoach.trainer import operators, waiting
from stagecoach.trainer.operators import LOCK, BuildLock

SLOW = 'extern "C" int answer() { return 42; }\n'
BUILD = """
import os, sys, time
from pathlib import Path
import torch.utils.cpp_extension as extension
from stagecoach.trainer.interrupt import leave_on_signals
from stagecoach.trainer.operators import guard_builds

leave_on_signals()
guard_builds()
print("starts", flush=True)
extension.load(name="tiny", sources=sys.argv[1:], is_python_module=False)
print("built", flush=True)
"""


@pytest.fixture
def builder(tmp_path):
    """Start a process that builds a tiny operator with a compiler that takes ``seconds`` and notes its process."""
    (tmp_path / "tiny.cpp").write_text(SLOW)
    script = tmp_path / "build.py"
    script.write_text(textwrap.dedent(BUILD))

    def start(seconds: float) -> subprocess.Popen:
        compiler = tmp_path / f"compiler{seconds}"
        compiler.write_text(
            f'#!/bin/sh\ncase "$*" in *tiny.cpp*) echo $$ >> {tmp_path}/compiling; sleep {seconds} ;; esac\n'
            'exec c++ "$@"\n'
        )
        compiler.chmod(0o755)
        environment = os.environ | {"CXX": str(compiler), "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
        return subprocess.Popen(
            [sys.executable, script, tmp_path / "tiny.cpp"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def until(true, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_build_that_was_killed_is_taken_over_and_a_signal_in_one_leaves_with_75(builder, tmp_path):
    compiling, left = tmp_path / "compiling", tmp_path / "cache" / "tiny" / "lock"
    first = builder(600)
    until(compiling.exists)
    os.killpg(first.pid, signal.SIGUSR1)  # as Slurm does, to all of the step
    assert first.wait(10) == 75
    assert "leaves on SIGUSR1" in first.stderr.read()
    assert left.exists()
    compiler = psutil.Process(int(compiling.read_text()))
    time.sleep(0.5)
    assert compiler.status() != psutil.STATUS_ZOMBIE  # it got the signal as well
    os.killpg(first.pid, signal.SIGKILL)
    compiling.unlink()
    second = builder(601)
    until(compiling.exists)
    os.killpg(second.pid, signal.SIGKILL)
    second.wait()
    assert left.exists()
    third = builder(0)
    out, err = third.communicate(timeout=60)
    assert third.returncode == 0, err
    assert "built" in out
    assert f"{left} was left by a build that was killed" in err
    assert not left.exists()


@pytest.mark.slow
def test_of_two_builders_at_once_one_runs_the_compiler_and_both_have_the_operator(builder, tmp_path):
    both = [builder(6), builder(6)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out.split()) == (0, ["starts", "built"]), err
    assert len((tmp_path / "compiling").read_text().split()) == 1
    assert not (tmp_path / "cache" / "tiny" / "lock").exists()


@pytest.mark.slow
def test_the_command_builds_a_real_operator_of_deepspeed_under_our_lock(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "stagecoach.trainer.operators", "ShareMemCommBuilder"],
        env=os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    (library,) = tmp_path.glob("*/*.so")
    assert done.stdout.splitlines()[-1] == f"{library.stem} is built"
    assert library.with_name(LOCK).read_text().startswith("process ")


def test_a_lock_file_without_a_holder_is_taken_over(tmp_path, caplog):
    theirs = tmp_path / "operator" / "lock"
    theirs.parent.mkdir()
    theirs.touch()
    lock = BuildLock(str(theirs))
    assert lock.try_acquire()
    assert "left by a build that was killed" in caplog.text
    assert theirs.exists()  # for processes that know PyTorch's lock only
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.SIGUSR1 in blocked
    lock.release()
    assert not theirs.exists()
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.fixture
def lockless(tmp_path, monkeypatch):
    """A folder of extensions on a file system that takes no locks, and the node's temporary folder, which does."""
    shared, own = tmp_path / "shared", tmp_path / "node"
    own.mkdir()
    flock = fcntl.flock

    def refusing(handle, how):
        file = Path(os.readlink(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}"))
        if file.is_relative_to(shared):
            raise OSError(refusing.code, os.strerror(refusing.code))
        flock(handle, how)

    monkeypatch.setattr(operators.fcntl, "flock", refusing)
    monkeypatch.setattr(operators.tempfile, "tempdir", str(own))
    monkeypatch.setattr(torch.utils.cpp_extension, "FileBaton", torch.utils.cpp_extension.FileBaton)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(shared))
    return shared, own / f"torch_extensions_{os.getuid()}", refusing


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_where_a_file_system_has_no_locks_each_node_builds_in_a_folder_of_its_own(lockless, caplog, code):
    shared, own, refusing = lockless
    refusing.code = code
    operators.guard_builds()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(own)
    assert f"{shared} takes no locks or files; operators are built in {own} instead" in caplog.text
    assert own.stat().st_mode & 0o777 == 0o700
    (own / "operator").mkdir()
    lock = BuildLock(str(own / "operator" / "lock"))
    assert lock.try_acquire()
    lock.release()

    (shared / "operator").mkdir()
    with pytest.raises(ValueError, match=r"takes no locks .*; set TORCH_EXTENSIONS_DIR to a folder of this node"):
        BuildLock(str(shared / "operator" / "lock")).try_acquire()


def test_a_folder_of_operators_that_is_another_users_is_not_used(lockless, monkeypatch):
    _, own, refusing = lockless
    refusing.code = errno.ENOLCK
    own.symlink_to(own.parent / "another")
    (own.parent / "another").mkdir()
    with pytest.raises(ValueError, match="belongs to another user"):
        operators.guard_builds()


def test_an_unknown_operator_is_one_sentence_of_ours_on_a_cpu_too():
    with pytest.raises(
        ValueError, match="FusedAdamBuildr: DeepSpeed has no such operator here, expected a name such as"
    ):
        operators.build(["FusedAdamBuildr"])


def test_who_waits_for_a_living_build_says_for_whose_and_gets_the_lock_after_it(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("stagecoach.trainer.operators.WAITED", 0.1)
    monkeypatch.setattr(waiting, "TICK", 0.1)
    folder = tmp_path / "operator"
    folder.mkdir()
    code = (
        f"import fcntl, time; f = open({str(folder / LOCK)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "f.write('process 7 on node3'); f.flush(); print(1, flush=True); time.sleep(2)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    holder.stdout.readline()
    lock = BuildLock(str(folder / "lock"))
    with caplog.at_level(logging.WARNING):
        lock.try_acquire()
    assert holder.wait(5) == 0
    lock.release()
    assert "waiting for the operator operator in" in caplog.text
    assert "which process 7 on node3 builds" in caplog.text
    with open(Path(folder, LOCK)) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
