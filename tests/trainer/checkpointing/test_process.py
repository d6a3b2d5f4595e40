"""The process that writes behind the steps: it hears no signal meant for its rank, and never outlives it."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stagecoach.data.files import TEMPORARY, check_directory
from stagecoach.data.locks import DirectoryLock
from stagecoach.trainer.checkpointing.host_copy import HostCopy
from stagecoach.trainer.checkpointing.layout import MODEL, MOMENTS, Fragment, Layout
from stagecoach.trainer.checkpointing.peers import Invitation, invite
from stagecoach.trainer.checkpointing.process import WriterProcess
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.claim import Claim, LostFolderError
from stagecoach.trainer.settings import PeerLostError

NUMEL = 1 << 21
KINDS = (MODEL, *MOMENTS)
LAYOUT = Layout(KINDS, {"w": (NUMEL,)}, [[NUMEL]], [{"w": Fragment(0, 0, 0, NUMEL)}])


@pytest.fixture
def memory():
    found = HostCopy(KINDS, [NUMEL], cuda=False)
    found.take({kind: [torch.randn(NUMEL)] for kind in KINDS})
    yield found
    found.close()


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=5)


def started(memory, store):
    return WriterProcess(0, LAYOUT, memory.descriptor, store, Invitation(), None)


def order(writer, step):
    writer.write({"stage": 1, "step": step}, {}, 0)


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def being_written(store):
    return list(store.directory.glob(f"{TEMPORARY}*"))


def test_signals_meant_for_ranks_do_not_end_it_at_its_start_or_in_a_write(memory, store):
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    writer = started(memory, store)
    for number in signals:
        os.kill(writer.process.pid, number)
    writer.outcome()
    order(writer, 1)
    wait_for(lambda: being_written(store))
    for number in (*signals, signal.SIGHUP, signal.SIGUSR2):
        os.kill(writer.process.pid, number)
    assert writer.outcome()["bytes"] > 12 * NUMEL
    check_directory(store.path(1))
    assert os.getpgid(writer.process.pid) != os.getpgid(0)  # nor does Ctrl-C in a terminal
    writer.close()
    assert writer.process.returncode == 0


def test_its_end_is_said_in_one_sentence_and_leaves_the_checkpoint_before(memory, store):
    writer = started(memory, store)
    writer.outcome()
    order(writer, 1)
    writer.outcome()
    order(writer, 2)
    wait_for(lambda: being_written(store))
    writer.process.kill()
    with pytest.raises(PeerLostError, match=r"rank 0's part of each checkpoint has ended by signal 9") as caught:
        writer.outcome()
    assert "\n" not in str(caught.value)
    assert store.steps() == [1]
    order(writer, 3)
    with pytest.raises(PeerLostError):
        writer.outcome()
    writer.close()


def test_a_checkpoint_takes_no_name_in_a_folder_that_another_run_has_taken_meanwhile(memory, store, tmp_path):
    ours, theirs = DirectoryLock(tmp_path / "lock"), DirectoryLock(tmp_path / "lock")
    ours.acquire()
    store.claim = Claim(str(ours.path), ours.token)
    writer = started(memory, store)
    writer.outcome()
    order(writer, 1)
    assert writer.outcome()["bytes"] > 12 * NUMEL
    order(writer, 2)
    wait_for(lambda: being_written(store))
    ours.release()
    theirs.acquire()
    with pytest.raises(
        LostFolderError, match=rf"{tmp_path}: another run writes to this folder now \(process {os.getpid()}"
    ):
        writer.outcome()
    assert store.steps() == [1]
    assert not being_written(store)
    order(writer, 3)
    with pytest.raises(LostFolderError):
        writer.outcome()
    assert not being_written(store)  # not even for a moment: what lies there under temporary names is the other's
    theirs.release()
    writer.close()


def test_where_one_has_ended_those_of_the_other_ranks_do_not_wait(memory, store, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    sizes = [[NUMEL]] * 3
    layout = Layout(KINDS, {"w": (3 * NUMEL,)}, sizes, [{"w": Fragment(0, 0, i * NUMEL, NUMEL)} for i in range(3)])
    invitation, listener = invite(3)
    writers = [
        WriterProcess(rank, layout, memory.descriptor, store, invitation, listener if rank == 0 else None)
        for rank in range(3)
    ]
    listener.close()
    for writer in writers:
        writer.outcome()
    writers[2].process.kill()
    writers[2].process.wait()
    for writer in writers[:2]:
        order(writer, 1)
    wait_for(lambda: all(writer.has_answered() for writer in writers[:2]), 20)
    for writer in writers[:2]:
        with pytest.raises(PeerLostError):
            writer.outcome()
    for writer in writers:
        writer.close()
    assert store.steps() == []


def test_it_shares_memory_instead_of_copying_it_and_needs_no_torch(memory, store):
    writer = started(memory, store)
    writer.outcome()
    order(writer, 1)
    writer.outcome()
    maps = Path(f"/proc/{writer.process.pid}/maps").read_text()
    assert "memfd:stagecoach-checkpoint" in maps
    assert "libtorch" not in maps
    own = [line for line in Path(f"/proc/{writer.process.pid}/status").read_text().splitlines() if "RssAnon" in line]
    assert int(own[0].split()[1]) < 60_000
    writer.close()


RANK = """
import json, os, sys, time
from pathlib import Path
from stagecoach.trainer.checkpointing.layout import Layout
from stagecoach.trainer.checkpointing.peers import Invitation
from stagecoach.trainer.checkpointing.process import WriterProcess
from stagecoach.trainer.checkpointing.store import CheckpointStore

layout = Layout.loads(json.loads(sys.argv[1]))
memory = os.memfd_create("rank")
os.posix_fallocate(memory, 0, layout.bytes)
writer = WriterProcess(0, layout, memory, CheckpointStore(Path(sys.argv[2]), keep=5), Invitation(), None)
writer.outcome()
print(writer.process.pid, flush=True)
for step in (1, 2):
    writer.write({"stage": 1, "step": step}, {}, 0)
    if step == 1:
        writer.outcome()
time.sleep(600)
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_a_rank_that_is_killed_takes_it_along_and_a_new_run_finds_the_checkpoint_before(memory, store, stopped):
    """A stopped one would go on later: when the next run has begun."""
    layout = json.dumps(LAYOUT.__dict__)
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK, layout, str(store.directory)], stdout=subprocess.PIPE, text=True
    )
    pid = int(rank.stdout.readline())
    wait_for(lambda: store.path(1).exists() and being_written(store))
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    rank.kill()
    rank.wait()
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text(), 5.0)
    assert store.steps() == [1]
    assert being_written(store)
    writer = started(memory, store)
    writer.outcome()
    order(writer, 3)
    writer.outcome()
    writer.close()
    assert store.steps() == [1, 3]
    assert not being_written(store)
    check_directory(store.path(1))


def test_a_write_that_fails_for_want_of_room_is_raised_and_the_next_one_is_written(memory, store):
    writer = started(memory, store)
    writer.outcome()
    writer.write({"stage": 1, "step": 1}, {}, 2**62)
    wait_for(writer.has_answered)
    for _ in range(2):  # also by whoever looks later
        with pytest.raises(ValueError, match=rf"checkpoint_1: cannot be written \({os.strerror(errno.ENOSPC)}"):
            writer.outcome()
    order(writer, 2)
    writer.outcome()
    writer.close()
    assert store.steps() == [2]
