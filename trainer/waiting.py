"""Waits that say what they wait for. Imports nothing heavy."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

AFTER = 20.0
"""Seconds until a wait is named."""
EVERY = 60.0
"""Seconds until it is named again."""
TICK = 1.0


class _Clock:
    """One thread for all waits of the process, so that a wait costs an entry in a dict."""

    def __init__(self) -> None:
        self.waits: dict[int, tuple[float, float, str | Callable[[], str]]] = {}
        """Start, next word (both of ``time.monotonic``) and what is waited for, by number."""
        self.numbers = itertools.count()
        self.pid = 0
        self.lock = threading.Lock()

    def add(self, what: str | Callable[[], str], after: float) -> int:
        with self.lock:
            if self.pid != os.getpid():  # threads do not survive a fork
                self.pid, self.waits = os.getpid(), {}
                threading.Thread(target=self._run, name="waits", daemon=True).start()
            number, now = next(self.numbers), time.monotonic()
            self.waits[number] = now, now + after, what
        return number

    def remove(self, number: int) -> None:
        with self.lock:  # or the thread, which is just looking, would put it back
            self.waits.pop(number, None)

    def _run(self) -> None:
        while True:
            time.sleep(TICK)
            now = time.monotonic()
            with self.lock:
                due = [(n, start, what) for n, (start, word, what) in self.waits.items() if now >= word]
                for number, start, what in due:
                    self.waits[number] = start, now + EVERY, what
            for _, start, what in due:
                text = what if isinstance(what, str) else what()
                log.warning("waiting for %s (%.0f s so far)", text, now - start, extra={"every_node": True})


_clock = _Clock()


@contextmanager
def waiting(what: str | Callable[[], str], after: float | None = None) -> Iterator[None]:
    """Say after ``after`` seconds (``AFTER``), and then every minute, that the block is still waiting for ``what`` (or
    what it returns by then). The first rank of each node speaks."""
    number = _clock.add(what, AFTER if after is None else after)
    try:
        yield
    finally:
        _clock.remove(number)
