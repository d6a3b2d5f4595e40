"""The rank's side: it says what it is doing, registers the dump of its stacks, and obeys its watcher.

A beat is a write of 64 bytes into memory. ``phase`` and ``beat`` do nothing where no run is watched.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import IO

from stagecoach.trainer.watch.record import (
    KEEP_ON,
    LEAVE,
    MISSING,
    SENSORS,
    Beat,
    Page,
    flight_path,
    page_path,
    stacks_path,
)

log = logging.getLogger(__name__)

STACKS = signal.SIGUSR2
"""``kill -USR2 PID`` writes a rank's Python stacks, also while it is inside native code, and leaves it running."""
PULSE_SECONDS = 0.5
RECENT_STEPS = 31

_current: Heartbeat | None = None
_stacks: IO[str] | None = None
"""Where the stacks go. It stays open, and the signal harmless, after the last heartbeat."""


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Say that this rank is in a phase (``record.PHASES``) while the block runs."""
    if _current is None:
        yield
        return
    before = _current.now.phase
    _current.beat(phase=name)
    try:
        yield
    finally:
        if _current is not None:
            _current.beat(phase=before)


def beat(**changes: int | str) -> None:
    """Say that this rank is alive, with what has changed: ``stage``, ``step``, ``micro``, ``phase``."""
    if _current is not None:
        _current.beat(**changes)


def step_done(step: int, seconds: float) -> None:
    """Say that an optimizer step is done and how long it took, which the bound of a hang follows."""
    if _current is not None:
        _current.step_done(step, seconds)


def sensors() -> list[float]:
    """What the node's watcher last measured for this rank (``record.SENSORS``); nothing where no run is watched."""
    return [MISSING] * len(SENSORS) if _current is None else _current.page.sensors()


class Heartbeat:
    """This rank's page in ``folder``, a folder of the node's memory. ``every_pulse`` is called about twice a second
    from a thread of its own, which also counts collectives and obeys the watcher's orders."""

    def __init__(self, folder: Path, rank: int, every_pulse: Callable[[], None] = lambda: None) -> None:
        self.folder, self.rank, self.every_pulse = folder, rank, every_pulse
        self.page = Page(page_path(folder, rank), create=True)
        self.now = Beat(0, time.time(), 0, 0, 0, "start", 0.0, 0)
        self.recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self.dumped = 0
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._pulses, name="heartbeat", daemon=True)

    def start(self) -> None:
        global _current, _stacks
        before, _stacks = _stacks, open(stacks_path(self.folder, self.rank), "w")  # noqa: SIM115
        faulthandler.register(STACKS, file=_stacks, all_threads=True, chain=False)
        if before is not None:
            before.close()
        self.page.write(self.now)
        self.thread.start()
        _current = self

    def beat(self, **changes: int | str) -> None:
        self.now = replace(self.now, beats=self.now.beats + 1, time=time.time(), **changes)  # type: ignore[arg-type]
        self.page.write(self.now)

    def step_done(self, step: int, seconds: float) -> None:
        self.recent.append(seconds)
        self.now = replace(self.now, median=median(self.recent))
        self.beat(step=step, micro=0, phase="boundary")

    def end(self, code: int) -> None:
        """The rank leaves by itself; silence after this is no hang."""
        global _current
        _current = None
        self.ending.set()
        self.now = replace(self.now, code=code)
        self.beat(phase="end")

    def _pulses(self) -> None:
        count = 0
        while not self.ending.wait(PULSE_SECONDS):
            count += 1
            self.page.pulse(count, collectives_started(), self.dumped)
            order, code = self.page.ordered()
            if order != KEEP_ON and not self.dumped:
                # With the interpreter's lock: no thread moves while its frames are read, which ends a process now and
                # then where a signal asks for them.
                assert _stacks is not None  # since start()
                faulthandler.dump_traceback(_stacks, all_threads=True)
                write_flight_recorder(flight_path(self.folder, self.rank))
                self.dumped = 1
            elif order == KEEP_ON:
                self.dumped = 0
            if order == LEAVE:
                # The training thread waits in native code for a rank that will not come: it cannot be asked.
                os._exit(code)
            try:
                self.every_pulse()
            except Exception:  # no memory or number for a process, which is no reason to stop the pulses
                log.exception("the watcher of this node cannot be started")


def collectives_started() -> int:
    """Collectives that this rank has started in its process groups: of ranks that wait for each other, the one that has
    started fewest is waited for."""
    distributed = sys.modules.get("torch.distributed.distributed_c10d")
    if distributed is None:
        return 0
    total = 0
    for group in list(distributed._world.pg_map):
        try:
            total += group._get_sequence_number_for_group()
        except Exception:  # a group that is just being made or unmade
            continue
    return total


def write_flight_recorder(path: Path) -> None:
    """PyTorch's record of the newest collectives as JSON, where it keeps one."""
    native = sys.modules.get("torch._C._distributed_c10d")
    dump = getattr(native, "_dump_nccl_trace_json", None) or getattr(native, "_dump_fr_trace_json", None)
    if dump is None:
        return
    try:
        text = dump(True, False)  # finished collectives too
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    except Exception as error:  # what helps to explain a hang must not hide it
        log.debug("no flight recorder: %s", error)
