"""Several workers on one machine: processes of their own, watched by the one that started them.

They report through pipes. One that fails or dies stops all; if the one that watches dies, they end by themselves.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.worker import PHASES
from stagecoach.data.building.worker_rank import WorkerRank
from stagecoach.data.progress import Track

PATIENCE = 10.0
"""Seconds that a worker may take to stop."""


class WorkerError(ValueError):
    """A worker failed or died. The message names it."""


@dataclass
class _Member:
    worker_rank: WorkerRank
    process: BaseProcess
    messages: Connection
    totals: dict[str, int] = field(default_factory=dict)
    made: int | None = None


def run_worker_pool(
    work: Callable[..., int],
    arguments: tuple[Any, ...],
    worker_ranks: list[WorkerRank],
    track: Track,
    phases: Sequence[str] = PHASES,
) -> int:
    """Run ``work(*arguments, worker_rank, track)`` in a process for each worker_rank, and return the sum of what they
    return. One bar of ``track`` shows each of the ``phases`` that all of them go through.

    Raises ``WorkerError`` for the first that fails or dies, when the others have been stopped.
    """
    context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA, nor the threads of libraries
    members: list[_Member] = []
    try:
        for worker_rank in worker_ranks:
            here, there = context.Pipe(duplex=False)
            process = context.Process(
                target=_run, args=(there, work, arguments, worker_rank), daemon=True, name=str(worker_rank)
            )
            process.start()
            there.close()  # or the pipe would not end with the worker
            members.append(_Member(worker_rank, process, here))
        watch = _Watch(members)
        for phase in phases:
            watch.until(lambda: all(phase in m.totals or m.made is not None for m in members))  # noqa: B023 (at once)
            total = sum(member.totals.get(phase, 0) for member in members)
            for _ in track(watch.steps(phase, total), phase, total):
                pass
        watch.until(lambda: all(member.made is not None for member in members))
        for member in members:
            member.process.join()
        return sum(member.made or 0 for member in members)
    finally:
        _stop(members)


class _Watch:
    """What the workers have reported."""

    def __init__(self, members: list[_Member]) -> None:
        self._members, self._open, self._steps = members, list(members), Counter[str]()

    def steps(self, phase: str, total: int) -> Iterator[None]:
        """One per step of the phase; fewer where workers ended early."""
        given = 0
        while given < total:
            self.until(lambda: self._steps[phase] > given or not self._open)  # noqa: B023 (called at once)
            if self._steps[phase] == given:
                return
            given += 1
            yield

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait for messages. Raises ``WorkerError``."""
        while not reached():
            ready = wait([member.messages for member in self._open])
            for member in [member for member in self._open if member.messages in ready]:
                try:
                    kind, *content = member.messages.recv()
                except (EOFError, OSError):
                    self._ended(member)
                else:
                    self._take(member, kind, content)

    def _take(self, member: _Member, kind: str, content: list[Any]) -> None:
        if kind == "total":
            phase, member.totals[phase] = content[0], content[1]
        elif kind == "step":
            self._steps[content[0]] += 1
        elif kind == "done":
            member.made = content[0]
        else:
            raise WorkerError(f"{member.worker_rank}: {content[0]}")

    def _ended(self, member: _Member) -> None:
        """Its end of the pipe is closed: it has said all, or is dead."""
        self._open.remove(member)
        if member.made is None:
            member.process.join(PATIENCE)
            code = member.process.exitcode
            how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
            raise WorkerError(
                f"{member.worker_rank} (process {member.process.pid}) {how}, expected a result; its parts so "
                f"far are kept, start the same command again to go on (SIGKILL often is the kernel's, "
                f"for want of memory: take fewer workers)"
            )


def _stop(members: list[_Member]) -> None:
    for member in members:
        member.process.terminate()
    for member in members:
        member.process.join(PATIENCE)
        if member.process.is_alive():
            member.process.kill()
            member.process.join()
        member.messages.close()


def _run(messages: Connection, work: Callable[..., int], arguments: tuple[Any, ...], worker_rank: WorkerRank) -> None:
    """The main function of a worker."""
    threading.Thread(target=_end_with_parent, daemon=True, name="parent").start()

    def track(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
        messages.send(("total", title, total))
        for item in items:
            messages.send(("step", title))
            yield item

    try:
        messages.send(("done", work(*arguments, worker_rank, track)))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        text = " ".join(str(error).split())
        if not _is_expected(error):
            traceback.print_exc()
            text = f"{type(error).__name__}: {text}"
        messages.send(("failed", text))
        sys.exit(1)


def _is_expected(error: Exception) -> bool:
    """Whether its message says it all: a file that is bad or missing, or what a line of this package refuses."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    ours = Path(raised_in).is_relative_to(Path(__file__).parents[1])
    return isinstance(error, RawError | OSError) or (isinstance(error, ValueError) and ours)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
