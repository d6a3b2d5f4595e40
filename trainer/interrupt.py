"""Stopping a run from outside.

From a command's first line until the first step of a stage is done there is nothing to save: SIGTERM and SIGUSR1 end
the process at once with ``EXIT_CODE``, so that a scheduler starts it again. From then on they, and SIGINT, ask for a
checkpoint at the next step boundary. Imports nothing heavy: a script arms it before it imports torch.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EARLY_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 75
"""EX_TEMPFAIL: stopped on request, and saved if there was anything to save; the same command continues the run."""
PEER_LOST = 76
"""Another rank is gone without a word, killed by the system or with its node, or a machine failed under this one; the
same command may succeed."""


class Interrupted(Exception):
    """The run was asked to stop and has saved a checkpoint."""


class _Early:
    """Ends the process on a signal while ``armed``.

    The interpreter runs a signal's handler between two lines of the main thread, which may be inside a C++ call for
    minutes (a rendezvous, a broadcast); but it writes the number to the wake-up descriptor at once, and a thread reads
    it there.
    """

    def __init__(self) -> None:
        self.armed = True
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in EARLY_SIGNALS:
            signal.signal(number, lambda number, frame: self.leave(number))
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        # A forked child shares the descriptor: a signal to it would be taken for one to this process.
        self._mask: set[Any] = set()
        os.register_at_fork(before=self._hold, after_in_parent=self._let_go, after_in_child=self._forget)

    def leave(self, number: int) -> None:
        if self.armed and number in EARLY_SIGNALS:
            rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
            said = (
                f"warning: rank {rank} leaves on {signal.Signals(number).name} with exit code {EXIT_CODE}; no step was "
                "made since the last checkpoint, and the same command starts again\n"
            )
            os.write(2, said.encode())
            os._exit(EXIT_CODE)  # the main thread may never come back from where it is

    def _watch(self) -> None:
        while True:
            for number in os.read(self._read, 64):
                self.leave(number)

    def _hold(self) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, EARLY_SIGNALS)

    def _let_go(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _forget(self) -> None:
        self.armed = False
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
            for number in EARLY_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
        self._let_go()


_early: _Early | None = None


def leave_on_signals() -> None:
    """From now on SIGTERM and SIGUSR1 end this process with ``EXIT_CODE``, but while ``StopRequest.at_once`` is off."""
    global _early
    if _early is None:
        _early = _Early()


@contextmanager
def signals_held() -> Iterator[None]:
    """Children that are started inside inherit blocked SIGTERM and SIGUSR1, which a launcher sends to whole groups: a
    compiler lives on (not so a script of dash, which unblocks them when a command of its has ended). This process still
    leaves by its other thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, EARLY_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopRequest:
    """Remembers a signal. The loop adds up over the ranks at each step boundary whether one ``received`` any."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        self.at_once(True)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def at_once(self, wanted: bool) -> None:
        """Whether a signal may end the process without a checkpoint, since no step was made that would be lost. It may
        where ``leave_on_signals`` was called and the loop has not said otherwise."""
        if _early is not None:
            _early.armed = wanted

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            # A second Ctrl-C means it.
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
