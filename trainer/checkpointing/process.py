"""The process that writes a rank's checkpoints while training goes on, from memory that both see.

It imports neither torch nor DeepSpeed (40 MB instead of 230, and it is there in a third of a second). It never outlives
its rank: the kernel kills it with it, so what it was writing keeps its temporary name and the checkpoint before stays
the newest. Signals that ask ranks to stop reach whole groups and job steps; it does not listen to them, since the rank
waits for it before it leaves.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.local_files import UnreachableError
from stagecoach.trainer.checkpointing.failure import SaveError
from stagecoach.trainer.checkpointing.layout import Layout, places
from stagecoach.trainer.checkpointing.peers import Invitation, meet
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.checkpointing.write import write_checkpoint
from stagecoach.trainer.claim import Claim, LostFolderError
from stagecoach.trainer.interrupt import SIGNALS
from stagecoach.trainer.settings import FirstRankError, PeerLostError

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when the thread that started it ends."""
KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (SaveError, UnreachableError, LostFolderError, FirstRankError, PeerLostError, ValueError)
}
"""What an answer may name; anything else is a ``RuntimeError``."""
LEAVE_SECONDS = 10.0


class WriterProcess:
    """The rank's end, to be started by the main thread, with which the process ends. ``memory`` is the descriptor of
    the shared memory; ``answer`` is what the process said last, until it is asked for another thing."""

    def __init__(
        self,
        rank: int,
        layout: Layout,
        memory: int,
        store: CheckpointStore,
        invitation: Invitation,
        listener: socket.socket | None,
    ) -> None:
        self.rank = rank
        self.answer: dict[str, Any] | None = None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until it ignores them
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stagecoach.trainer.checkpointing.process", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                pass_fds=[memory, *([listener.fileno()] if listener else [])],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._tell(
            {
                "rank": rank,
                "layout": asdict(layout),
                "memory": memory,
                "directory": str(store.directory),
                "keep": store.keep,
                "claim": asdict(store.claim) if store.claim else None,
                "invitation": asdict(invitation),
                "listener": listener.fileno() if listener else None,
            }
        )

    def write(self, state: dict[str, Any], texts: dict[str, str], needed: int) -> None:
        """Let it write a checkpoint of what the shared memory holds, which must not change until it has answered."""
        self._tell({"state": state, "texts": texts, "needed": needed})

    def has_answered(self) -> bool:
        assert self.process.stdout is not None
        return self.answer is not None or bool(select.select([self.process.stdout], [], [], 0)[0])

    def outcome(self) -> dict[str, Any]:
        """Wait for the answer: bytes and seconds of a checkpoint. Raises what the writing has raised."""
        if self.answer is None:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            self.answer = json.loads(line) if line else {"kind": "PeerLostError", "text": self._ended()}
        if "kind" in self.answer:
            raise KINDS.get(self.answer["kind"], RuntimeError)(self.answer["text"])
        return self.answer

    def close(self) -> None:
        """End it, once what it was asked to write has been waited for."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _tell(self, message: dict[str, Any]) -> None:
        self.answer = None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # its end is found out by who waits for its answer
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def _ended(self) -> str:
        code = self.process.wait()
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        return (
            f"the process {self.process.pid} on {socket.gethostname()} that writes rank {self.rank}'s part of each "
            f"checkpoint has ended {how}, maybe for want of memory; the checkpoint before is the newest"
        )


def main() -> None:
    """Read what there is to know, then one order a line, from the standard input, and answer each on the standard
    output."""
    for number in (*SIGNALS, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _end_with(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    values = json.loads(sys.stdin.readline())
    rank, layout = values["rank"], Layout.loads(values["layout"])
    claim = Claim(**values["claim"]) if values["claim"] else None
    store = CheckpointStore(Path(values["directory"]), values["keep"], claim)
    where, size = places(layout.kinds, layout.sizes[rank])
    memory = mmap.mmap(values["memory"], size, prot=mmap.PROT_READ)
    flats = {
        kind: [np.frombuffer(memory, np.float32, numel, offset) for offset, numel in parts]
        for kind, parts in where.items()
    }
    listener = socket.socket(fileno=values["listener"]) if values["listener"] is not None else None
    try:
        peers = meet(rank, len(layout.sizes), Invitation(**values["invitation"]), listener)
    except PeerLostError as error:
        answer(_failure(error))
        return
    answer({})
    for line in sys.stdin:
        order, began = json.loads(line), time.monotonic()
        try:
            written = write_checkpoint(
                store, order["state"], order["texts"], order["needed"], layout, flats.__getitem__, peers
            )
            answer({"bytes": written, "seconds": time.monotonic() - began})
        except Exception as error:
            if type(error).__name__ not in KINDS:
                traceback.print_exc()
            answer(_failure(error))
            if isinstance(error, PeerLostError):
                return  # its connections close, so that the others' writers do not wait for it


def _failure(error: Exception) -> dict[str, str]:
    kind = type(error).__name__
    return {"kind": kind, "text": str(error) if kind in KINDS else f"{kind}: {error}"}


def _end_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


if __name__ == "__main__":
    main()
