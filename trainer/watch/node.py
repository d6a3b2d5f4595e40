"""The watcher: a small process on each node that reads its ranks' pages, and on rank 0's node judges all of them.

It is no thread of a rank: one that is stopped or dead, or native code that keeps the interpreter, would take it along.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from stagecoach.trainer.watch.exchange import FOLDER, Clock, Exchange, answers
from stagecoach.trainer.watch.heartbeat import STACKS
from stagecoach.trainer.watch.judge import GONE, STOPPED, Bounds, Finding, RankState, judge
from stagecoach.trainer.watch.record import (
    DUMP,
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
from stagecoach.trainer.watch.sensors import NodeSensors

DUMP_SECONDS = 3.0
"""Time that ranks are given to write their stacks, and to leave before they are killed."""
DIED_SECONDS = 2.0
"""A rank must have been gone for so long."""


@dataclass(frozen=True)
class RankPlace:
    """Where a rank is: all that the nodes' watchers must know of it beforehand."""

    rank: int
    host: str
    node: int
    pid: int
    gpu: str | None = None


@dataclass(frozen=True)
class WatchConfig:
    """What a watcher is started with. ``folder`` is in the node's memory, ``run`` is the run folder; ``node`` 0 is that
    of rank 0; ``copy`` are the seconds between two copies into the run folder."""

    token: str
    folder: str
    run: str
    node: int
    ranks: tuple[RankPlace, ...]
    bounds: Bounds
    on_hang: str
    lost_code: int
    poll: float = 1.0
    copy: float = 3.0

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> WatchConfig:
        values = json.loads(text)
        values["ranks"] = tuple(RankPlace(**place) for place in values["ranks"])
        return cls(**values | {"bounds": Bounds(**values["bounds"])})


class LocalRank:
    """A rank of this node."""

    def __init__(self, folder: Path, place: RankPlace, now: float) -> None:
        self.place = place
        self.page = Page(page_path(folder, place.rank))
        self.beat: Beat = self.page.read()
        self.beat_seen = self.pulse_seen = now

    def look(self, now: float) -> RankState:
        beat = self.page.read()
        if beat.beats != self.beat.beats:
            self.beat_seen = now
        if beat.pulses != self.beat.pulses:
            self.pulse_seen = now
        self.beat, place = beat, self.place
        return RankState(
            rank=place.rank,
            host=place.host,
            pid=place.pid,
            stage=beat.stage,
            step=beat.step,
            micro=beat.micro,
            phase=beat.phase,
            median=beat.median,
            code=beat.code,
            collectives=beat.collectives,
            silent=now - self.beat_seen,
            frozen=now - self.pulse_seen,
            process=process_state(place.pid),
        )


def process_state(pid: int) -> str:
    """The letter of /proc/PID/stat, ``X`` where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"


class Watcher:
    """The loop of a node's watcher."""

    def __init__(self, config: WatchConfig) -> None:
        self.config, self.run = config, Path(config.run)
        self.folder = Path(config.folder)
        self.clock = Clock(longest=4 * config.poll)
        self.local = [LocalRank(self.folder, place, 0.0) for place in config.ranks if place.node == config.node]
        nodes = {place.node for place in config.ranks}
        self.exchange = Exchange(self.run, config.node, nodes, config.token, config.copy)
        self.order: dict[str, Any] | None = None
        self.obeyed: str | None = None
        self.findings = 0
        self.rounds, self.answered, self.is_away = 0, 0.0, False
        self.samples = self.sampled = 0
        self.sampled_at = 0.0
        self.named: tuple[Any, ...] | None = None
        self.named_at = 0.0
        self.died_at: float | None = None

    def watch(self) -> None:
        """Until all ranks of this node have left, or were made to."""
        self.exchange.publish(self._words([rank.look(0.0) for rank in self.local]))
        self.exchange.start()
        threading.Thread(target=self._measure, name="sensors", daemon=True).start()
        while self.turn():
            time.sleep(self.config.poll)
        self.exchange.end(DUMP_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)

    def turn(self) -> bool:
        """One look at everything; whether there is still something to watch."""
        now = self.clock.tick()
        states = [rank.look(now) for rank in self.local]
        self.exchange.publish(self._words(states))
        self._look_at_the_threads(now)
        if all(state.ended or state.process in GONE for state in states):
            return False
        return self._lead(states, now) if self.config.node == 0 else self._follow(states, now)

    def _measure(self) -> None:
        """Sensors have a thread of their own: a driver may hang with its GPU."""
        sensors = NodeSensors([(rank.place.pid, rank.place.gpu) for rank in self.local])
        while True:
            for rank, values in zip(self.local, sensors.sample(), strict=True):
                rank.page.write_sensors(values)
            self.samples += 1
            time.sleep(self.config.copy)

    def _look_at_the_threads(self, now: float) -> None:
        """Say when the run folder does not answer, and take old numbers of the sensors away."""
        if self.samples != self.sampled:
            self.sampled, self.sampled_at = self.samples, now
        elif now - self.sampled_at > 10 * self.config.copy:
            for rank in self.local:
                rank.page.write_sensors([MISSING] * len(SENSORS))
        if self.exchange.rounds != self.rounds:
            self.rounds, self.answered = self.exchange.rounds, now
        is_away = now - self.answered > max(self.config.bounds.still, 5 * self.config.copy)
        if is_away != self.is_away:
            self.is_away = is_away
            away = f"{self.run} does not answer, or takes no file, since {now - self.answered:.0f} s"
            more = "the ranks of other nodes are not seen meanwhile"
            self._say("WARNING", f"{away}; {more}" if is_away else f"{self.run} answers again")

    def _all_states(self, local: list[RankState]) -> list[RankState]:
        """Of all ranks, those of other nodes as old as their last copy; of a node that was never heard of, as at its
        start."""
        states = list(local)
        for node, other in self.exchange.others.items():
            age = self.exchange.age(node)
            if not other.content:
                for place in self.config.ranks:
                    if place.node == node:
                        where = (place.rank, place.host, place.pid, 0, 0, 0, "start", 0.0, 0, 0)
                        states.append(RankState(*where, silent=age, frozen=age, process="?", node_silent=age))
                continue
            for values in other.content["ranks"]:
                older = {"silent": values["silent"] + age, "frozen": values["frozen"] + age, "node_silent": age}
                states.append(RankState(**values | older))
        return states

    def _words(self, states: list[RankState]) -> dict[str, Any]:
        rounded = [asdict(s) | {"silent": round(s.silent, 1), "frozen": round(s.frozen, 1)} for s in states]
        at = datetime.now().astimezone().isoformat(timespec="seconds")
        return {"time": at, "ranks": rounded, "order": self.order, "obeyed": self.obeyed}

    def _lead(self, states: list[RankState], now: float) -> bool:
        """On rank 0's node: judge all ranks, have their stacks collected, say what is wrong, and end the job."""
        known, bounds = self._all_states(states), self.config.bounds
        if self.is_away and self.exchange.others:
            # Those of other nodes may be waiting for their data, of the same file system maybe.
            known, bounds = states, replace(bounds, still=max(bounds.still, bounds.data))
        finding = judge(known, bounds, self.config.lost_code)
        if finding is None:
            self.died_at = None
            if self.named is not None:
                self._say("INFO", f"all ranks go on after {now - self.named_at:.0f} s")
                self.named = None
            return True
        if not self._is_news(finding, now):
            return True
        stop = finding.final and self.config.on_hang == "stop"
        self.findings += 1
        folder = self.run / FOLDER / f"hang_{datetime.now():%Y%m%d-%H%M%S}_{self.findings}"
        # A watcher that takes another's place counts from the start: its orders are new all the same.
        self.order = {"id": uuid.uuid4().hex, "folder": folder.name, "stop": stop, **finding.as_dict()}
        self.exchange.publish(self._words(states), now=True)
        stacks = self._collect(folder, states, stop)
        if stop:
            self._wait_for_the_others()
        text = json.dumps({**finding.as_dict(), "stop": stop}, indent=1) + "\n"
        answers(lambda: (folder / "finding.json").write_text(text), DUMP_SECONDS)
        ending = f"the job ends with exit code {finding.code}" if stop else "the job goes on waiting"
        self._say("ERROR" if stop else "WARNING", f"{finding.text}; {stacks}; {ending}")
        return not stop or self._end(finding.code)

    def _is_news(self, finding: Finding, now: float) -> bool:
        """Whether to tell it: a rank that has just died may be one of many that a launcher is ending, and who waits for
        a batch may change from second to second."""
        if finding.kind == "died":
            self.died_at = now if self.died_at is None else self.died_at
            if now - self.died_at < DIED_SECONDS:
                return False
        what = (finding.kind, finding.final, finding.ranks if finding.final else None)
        if what == self.named:
            return False
        self.named, self.named_at = what, now
        return True

    def _follow(self, states: list[RankState], now: float) -> bool:
        """On other nodes: obey the watcher of rank 0's, and where that is silent and nothing moves, act alone."""
        bounds = self.config.bounds
        order = self.exchange.others[0].content.get("order")
        if order and order["id"] != self.obeyed:
            self._collect(self.run / FOLDER / order["folder"], states, order["stop"])
            self.obeyed = order["id"]
            self.exchange.publish(self._words(states), now=True)
            return not order["stop"] or self._end(order["code"])
        silent = self.exchange.age(0)
        waiting = all(state.silent > bounds.stopped_after(state) for state in states if not state.ended)
        if silent <= bounds.still or not waiting or self.named is not None:
            return True
        self.named = ("silent",)
        stop = self.config.on_hang == "stop"
        folder = self.run / FOLDER / f"hang_{datetime.now():%Y%m%d-%H%M%S}_node{self.config.node}"
        stacks = self._collect(folder, states, stop)
        host = self.config.ranks[0].host
        self._say("ERROR", f"nothing has been heard of {host}, the node of rank 0, for {silent:.0f} s; {stacks}")
        return not stop or self._end(self.config.lost_code)

    def _collect(self, folder: Path, states: list[RankState], stop: bool) -> str:
        """Stacks and flight recorders of this node's ranks; returns where they are. A stopped one gives its stacks only
        when it is continued, which is done where the job ends anyway."""
        there = [state for state in states if not state.ended and state.process not in GONE]
        sizes = {state.rank: _size(stacks_path(self.folder, state.rank)) for state in states}
        for state in there:
            self._page(state.rank).order(DUMP)
        if stop:
            for state in there:
                if state.process == STOPPED:
                    with suppress(OSError):
                        os.kill(state.pid, signal.SIGCONT)
        waited = [state.rank for state in there if stop or state.process != STOPPED]
        end = time.monotonic() + DUMP_SECONDS
        by_signal = end - DUMP_SECONDS / 2
        while time.monotonic() < end and not all(self._has_dumped(rank, sizes[rank]) for rank in waited):
            if time.monotonic() > by_signal:  # native code holds the interpreter of those that have said nothing
                by_signal = end
                for state in there:
                    if _size(stacks_path(self.folder, state.rank)) == sizes[state.rank]:
                        with suppress(OSError):
                            os.kill(state.pid, STACKS)
            time.sleep(0.1)

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            for state in states:
                head = f"{json.dumps(asdict(state))}\n"
                path = stacks_path(self.folder, state.rank)
                text = path.read_bytes()[sizes[state.rank] :].decode(errors="replace") if path.exists() else ""
                missing = "no stacks: the process is gone, stopped, or could not be signalled\n"
                (folder / f"rank_{state.rank:04d}.txt").write_text(head + (text or missing))
                flight = flight_path(self.folder, state.rank)
                if flight.exists():
                    shutil.copyfile(flight, folder / flight.name)

        written = answers(write, DUMP_SECONDS)
        if not stop:
            for state in there:
                self._page(state.rank).order(KEEP_ON)
        return f"stacks of all ranks are in {folder}" if written else f"no stacks, since {folder} cannot be written"

    def _has_dumped(self, rank: int, before: int) -> bool:
        return _size(stacks_path(self.folder, rank)) > before and self._page(rank).read().dumped == 1

    def _page(self, rank: int) -> Page:
        return next(one.page for one in self.local if one.place.rank == rank)

    def _wait_for_the_others(self) -> None:
        """Until the other nodes have collected their stacks: when rank 0 leaves, launchers end theirs."""
        end = time.monotonic() + (0.0 if self.is_away else 3 * self.config.copy + DUMP_SECONDS)
        waited = [other for other in self.exchange.others.values() if other.content]
        order = self.order and self.order["id"]
        while time.monotonic() < end and any(other.content["obeyed"] != order for other in waited):
            time.sleep(0.2)
            self.exchange.publish(self.exchange.words, now=True)

    def _end(self, code: int) -> bool:
        """Make this node's ranks leave with ``code``; what does not within some seconds is killed."""
        for rank in self.local:
            rank.page.order(LEAVE, code)
        there = [rank.place.pid for rank in self.local]
        end = time.monotonic() + DUMP_SECONDS
        while there and time.monotonic() < end:
            time.sleep(0.1)
            there = [pid for pid in there if process_state(pid) not in GONE]
        for pid in there:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return False

    def _say(self, level: str, text: str) -> None:
        """On the standard error and in ``train.log``, as the ranks' own records are."""
        with suppress(OSError):
            print(f"{level.lower()}: {text}", file=sys.stderr, flush=True)
        host = self.local[0].place.host if self.local else ""
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {host} watch {level} {text}\n"

        def append() -> None:
            with open(self.run / "train.log", "a") as handle:
                handle.write(line)

        answers(append, DUMP_SECONDS)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def main() -> None:
    """Read the configuration from the standard input and watch."""
    config = WatchConfig.loads(sys.stdin.readline())
    # Signals that ask the ranks to stop reach the whole group or job step: the watcher stays until they have left.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        watcher = Watcher(config)
    except FileNotFoundError:
        # A short run is over before this process is up: its ranks take their pages away as they end.
        until = time.monotonic() + 1.0
        while any(process_state(place.pid) not in GONE for place in config.ranks if place.node == config.node):
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        return
    watcher.watch()


if __name__ == "__main__":
    main()
