"""How the nodes' watchers talk: one small file each in the run folder, written in place, since opening a file asks even
NFS for its newest content, which a renamed one need not show for half a minute."""

from __future__ import annotations

import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stagecoach.data.reading import read_regular

FOLDER = "watch"


class Clock:
    """Seconds in which something could be seen, ``longest`` at a time: where the whole node was suspended, or the file
    system away, nobody else is blamed for it."""

    def __init__(self, longest: float) -> None:
        self.longest, self.now, self.last = longest, 0.0, time.monotonic()

    def tick(self) -> float:
        here = time.monotonic()
        self.now += min(here - self.last, self.longest)
        self.last = here
        return self.now


def answers(function: Callable[[], object], seconds: float) -> bool:
    """Whether ``function``, which asks a file system, is done in time and without an ``OSError``. It goes on by itself
    where it is not."""
    done = threading.Event()

    def run() -> None:
        with suppress(OSError):
            function()
            done.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return done.is_set()


class NodeFile:
    """What a node's watcher says to the others: states of its ranks, an order (node 0), an order obeyed."""

    def __init__(self, run: Path, node: int, token: str) -> None:
        self.path, self.token = run / FOLDER / f"node_{node:04d}.json", token
        self.count, self.seen = -1, 0.0
        self.content: dict[str, Any] = {}

    def write(self, content: dict[str, Any]) -> bool:
        """Whether it could be written."""
        self.count += 1
        text = json.dumps({"token": self.token, "count": self.count, **content})
        try:
            self.path.parent.mkdir(exist_ok=True)  # the run folder itself comes with the run's first file
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o600)
            try:
                line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
                os.pwrite(descriptor, line, 0)
                os.ftruncate(descriptor, len(line))
            finally:
                os.close(descriptor)
        except OSError:
            return False
        return True

    def read(self, now: float) -> None:
        """Take what is new; ``seen`` is when something last was."""
        try:
            text = read_regular(self.path, retries=0).decode()  # the next look is soon
            content = json.loads(text[9:])
            if int(text[:8], 16) != zlib.crc32(text[9:].rstrip("\n").encode()) or content["token"] != self.token:
                return
            count = int(content["count"])
        except (ValueError, KeyError, TypeError, RecursionError):  # not there yet, or in the middle of a write
            return
        if count != self.count:
            self.count, self.seen, self.content = count, now, content


class Exchange:
    """Writes this node's file and reads those of others every ``seconds``, in a thread of its own: a file system may
    not answer for minutes, and the watcher must not stand still with it. Node 0 reads all others, these node 0's."""

    def __init__(self, run: Path, node: int, nodes: Iterable[int], token: str, seconds: float) -> None:
        self.run, self.node, self.nodes, self.seconds = run, node, set(nodes), seconds
        self.own = NodeFile(run, node, token)
        read = self.nodes - {node} if node == 0 else {0}
        self.others = {other: NodeFile(run, other, token) for other in read}
        self.clock = Clock(longest=4 * seconds)
        """Stands still while this node cannot write, which says nothing about the others."""
        self.rounds = 0
        """Those in which the file system answered."""
        self.words: dict[str, Any] = {}
        self._wanted, self._ending = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def age(self, node: int) -> float:
        """Seconds since another node's watcher was heard of."""
        return max(0.0, self.clock.now - self.others[node].seen)

    def publish(self, words: dict[str, Any], now: bool = False) -> None:
        """Let the others know ``words`` with the next round, or ``now``."""
        self.words = words
        if now:
            self._wanted.set()

    def round(self) -> None:
        """Write and read once."""
        if self.own.write(self.words):
            now = self.clock.tick()
            for other in self.others.values():
                other.read(now)
        else:
            self.clock.last = time.monotonic()
            try:
                if self.run.is_dir():  # else it has not been made yet
                    return
            except OSError:  # of a server that is away
                return
        self.rounds += 1

    def end(self, seconds: float) -> None:
        """Stop, and take this node's file away."""
        self._ending = True
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        answers(self.own.path.unlink, seconds)

    def _run(self) -> None:
        if self.node == 0:
            self._remove_leftovers()
        while not self._ending:
            self.round()
            self._wanted.wait(self.seconds)
            self._wanted.clear()

    def _remove_leftovers(self) -> None:
        """Files of nodes that a killed start had and this one has not."""
        mine = {NodeFile(self.run, node, "").path.name for node in self.nodes}
        with suppress(OSError):
            for path in (self.run / FOLDER).glob("node_*.json"):
                if path.name not in mine:
                    path.unlink(missing_ok=True)
