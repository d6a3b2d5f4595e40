"""Who is to blame: from what all ranks' heartbeats say to the ranks that stand still, and why.

Pure functions of the observed states, so that any number of ranks can be tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stagecoach.trainer.watch.record import PHASES, SHORT

FROZEN_SECONDS = 10.0
"""An interpreter that has not run for so long is held by native code, or the process is stopped."""
GONE, STOPPED = ("Z", "X"), "T"
"""States of /proc/PID/stat: ended (``X`` also where the process is no longer there), stopped by a signal."""


@dataclass(frozen=True)
class RankState:
    """One rank as its node's watcher sees it. ``silent`` are seconds since its last beat, ``frozen`` since its
    interpreter last ran, ``process`` is a letter of /proc/PID/stat, ``node_silent`` are seconds since the node's
    watcher was heard of."""

    rank: int
    host: str
    pid: int
    stage: int
    step: int
    micro: int
    phase: str
    median: float
    code: int
    collectives: int
    silent: float
    frozen: float
    process: str
    node_silent: float = 0.0

    @property
    def ended(self) -> bool:
        return self.phase == "end"


@dataclass(frozen=True)
class Bounds:
    """Seconds. ``still`` is for a step (or ``medians`` times the rank's median step, where that is more), for a stopped
    process and for a node; ``slow`` for phases that may take minutes; ``data`` for the end of a run that waits for a
    batch, since reading has ways of its own to try again and to give up."""

    still: float = 45.0
    slow: float = 1800.0
    data: float = 660.0
    medians: float = 10.0

    def named_after(self, state: RankState) -> float:
        return max(self.still, self.medians * state.median) if state.phase in SHORT else self.slow

    def stopped_after(self, state: RankState) -> float:
        return max(self.named_after(state), self.data if state.phase == "data" else 0.0)


@dataclass(frozen=True)
class Finding:
    """What is wrong: the ranks to blame, and a sentence. A ``final`` one ends the job with ``code`` (unless the recipe
    says wait), any other is only logged."""

    kind: str
    ranks: tuple[int, ...]
    text: str
    final: bool
    code: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(states: Sequence[RankState], bounds: Bounds, lost_code: int) -> Finding | None:
    """The worst that can be said of the ranks, None where all is well."""
    alive = [state for state in states if not state.ended]
    if not alive:
        return None
    silent = [state for state in alive if state.node_silent > bounds.still]
    heard = [state for state in alive if state not in silent]
    died = [state for state in heard if state.process in GONE]
    if died:
        return _finding("died", died, "the process is gone (killed, out of memory or a crash)", states, True, lost_code)
    waiting = [state for state in heard if state.silent > bounds.still]
    if silent and len(waiting) == len(heard):  # as long as others make steps the node makes them too
        seconds = min(state.node_silent for state in silent)
        final = all(state.silent > bounds.stopped_after(state) for state in heard)
        why = f"nothing has been heard of the node for {seconds:.0f} s"
        return _finding("silent", silent, why, states, final, lost_code)
    stopped = [state for state in heard if state.process == STOPPED and state.frozen > bounds.still]
    if stopped:
        why = f"the process has been stopped for {min(state.frozen for state in stopped):.0f} s"
        return _finding("stopped", stopped, why, states, True, lost_code)
    behind = furthest_behind(heard)
    first = min(behind, key=lambda state: bounds.stopped_after(state) - state.silent)
    failed = [state for state in states if state.ended and state.code]
    # The rank will not come, in any phase of the others; only the last words of a run may take minutes.
    if failed and first.silent > (bounds.slow if first.phase == "save" else bounds.still):
        codes = sorted({state.code for state in failed})
        text = f"left with exit code {', '.join(map(str, codes))} while others wait"
        return _finding("left", failed, text, states, True, max(codes))
    final = first.silent > bounds.stopped_after(first)
    if not final and first.silent <= bounds.named_after(first):
        return None
    if all(state.process == STOPPED for state in behind):  # it was late before
        why = f"no beat for {first.silent:.0f} s, and the process is stopped"
        return _finding("stopped", behind, why, states, final, lost_code)
    if len(behind) == len(heard) > 1:
        why = f"no rank is behind another; a GPU or the network hangs, no beat for {first.silent:.0f} s"
    else:
        why = f"no beat for {first.silent:.0f} s"
    if any(state.frozen > FROZEN_SECONDS for state in behind):
        why += ", its interpreter does not run (native code or a file system holds it)"
    return _finding("still", behind, why, states, final, lost_code)


def furthest_behind(states: Sequence[RankState]) -> list[RankState]:
    """The ranks that the others wait for: of an earlier stage, step or phase, or fewer collectives started."""
    least = min(_progress(state) for state in states)
    return [state for state in states if _progress(state) == least]


def _progress(state: RankState) -> tuple[int, ...]:
    return state.stage, state.step, state.micro, PHASES.index(state.phase), state.collectives


def _finding(
    kind: str, blamed: Sequence[RankState], why: str, states: Sequence[RankState], final: bool, code: int
) -> Finding:
    ranks = tuple(state.rank for state in blamed)
    others = Counter(state.phase for state in states if state.rank not in ranks and not state.ended)
    rest = ", ".join(f"{count} in {phase}" for phase, count in others.most_common())
    first = blamed[0]
    where = f" at step {first.step} of stage {first.stage}" if first.stage else ""
    text = f"{who(blamed)} in phase {first.phase}{where}: {why}"
    return Finding(kind, ranks, text + (f"; of the others {rest}" if rest else ""), final, code)


def who(states: Sequence[RankState]) -> str:
    """``rank 37 (node05, pid 4711)``, or several by host."""
    if len(states) == 1:
        return f"rank {states[0].rank} ({states[0].host}, pid {states[0].pid})"
    hosts: dict[str, list[int]] = {}
    for state in states:
        hosts.setdefault(state.host, []).append(state.rank)
    return "; ".join(f"ranks {_ranges(ranks)} ({host})" for host, ranks in hosts.items())


def _ranges(numbers: Sequence[int]) -> str:
    """``0-3, 7``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
