"""Stopping a run from outside: SIGTERM, SIGINT and SIGUSR1 ask for a checkpoint at the next step boundary."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EXIT_CODE = 75
"""EX_TEMPFAIL: saved and stopped on request; the same command continues the run."""


class Interrupted(Exception):
    """The run was asked to stop and has saved a checkpoint."""


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
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            # A second Ctrl-C means it.
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
