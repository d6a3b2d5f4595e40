"""From one row of numbers per rank to what an operator reads: the slowest and the median, stragglers, faults.

Ranks in step all take the same time; who is waited for shows in the time that the others spend in collectives. A rank's
**own** step time is the step less the collective time that it has more than the rank with the least.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from stagecoach.trainer.watch.record import SENSORS

STRAGGLER, WINDOWS, OF_WINDOWS = 1.15, 3, 5
STRAGGLER_SECONDS = 0.02
"""Steps of a few milliseconds differ by chance; a straggler costs at least so much."""
COLUMNS = ("step_seconds", "collective_seconds", "data_wait", "memory_gib", *SENSORS)
BY_RANK = ("data_wait", "memory_gib", "rss_gib", "gpu_temperature_c", "gpu_clock_mhz")
"""Kept by rank besides the own step time; all the others are reduced."""
THROTTLES = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake"}
"""Bits of NVML's clock event reasons that cost speed."""


@dataclass(frozen=True)
class ClusterView:
    """What rank 0 makes of all ranks' numbers: ``values`` for the trackers, ``ranks`` by rank for the report, a line
    for people, and what they should be warned of."""

    values: dict[str, float]
    ranks: dict[str, list[float | None]]
    line: str
    warnings: list[str]


class ClusterReducer:
    """From one row of ``COLUMNS`` per rank to a ``ClusterView``; remembers who was slow."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = list(hosts)
        self.firsts = [self.hosts.index(host) for host in dict.fromkeys(self.hosts)]
        self.slow: list[deque[bool]] = [deque(maxlen=OF_WINDOWS) for _ in hosts]
        self.stragglers: set[int] = set()
        self.reported: dict[tuple[str, int], float] = {}

    def reduce(self, rows: Sequence[Sequence[float]]) -> ClusterView:
        table: dict[str, Sequence[float]] = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
        own = own_seconds(table["step_seconds"], table["collective_seconds"])
        slowest, middle = max(range(len(own)), key=own.__getitem__), median_low(own)
        waiting = max(range(len(own)), key=table["data_wait"].__getitem__)
        fullest = max(range(len(own)), key=table["memory_gib"].__getitem__)
        values = {
            "slowest_step_seconds": own[slowest],
            "median_step_seconds": middle,
            "slowest_rank": float(slowest),
            "data_wait_max": table["data_wait"][waiting],
            "memory_gib_max": table["memory_gib"][fullest],
            "collective_seconds_median": median_low(table["collective_seconds"]),
        }
        for name, reduced in (
            ("rss_gib", max),
            ("cpu_percent", min),
            ("host_memory_percent", max),
            ("gpu_utilisation", min),
            ("gpu_temperature_c", max),
            ("gpu_clock_mhz", min),
        ):
            values[f"{name}_{reduced.__name__}"] = reduced(_there(table[name]), default=math.nan)
        for name in ("network_sent_mb_per_second", "network_received_mb_per_second", "infiniband_mb_per_second"):
            values[name] = _sum([table[name][first] for first in self.firsts])
        values["gpu_power_watts"] = _sum(table["gpu_power_watts"])
        values["gpu_ecc_errors"] = _sum(table["gpu_ecc_errors"])
        throttled = [_throttles(bits) for bits in table["gpu_throttle_bits"]]
        if _there(table["gpu_throttle_bits"]):
            values["gpus_throttled"] = float(sum(bool(reasons) for reasons in throttled))
        ranks = {"step_seconds": own, **{name: table[name] for name in BY_RANK if _there(table[name])}}
        line = (
            f"slowest {self._who(slowest)} {own[slowest]:.3g} s a step, median {middle:.3g} s; "
            f"data wait up to {table['data_wait'][waiting]:.0%} ({self._who(waiting)}); "
            f"memory up to {table['memory_gib'][fullest]:.1f} GiB ({self._who(fullest)})"
        )
        return ClusterView(
            {f"cluster/{name}": value for name, value in values.items() if not math.isnan(value)},
            {name: [_short(value) for value in column] for name, column in ranks.items()},
            line,
            self._straggling(own, middle, table["data_wait"], throttled) + self._faults(table),
        )

    def _straggling(
        self, own: Sequence[float], middle: float, data_wait: Sequence[float], throttled: Sequence[str]
    ) -> list[str]:
        """Who has become a straggler, and who is none any more."""
        said = []
        for rank, seconds in enumerate(own):
            over = seconds > STRAGGLER * middle and seconds - middle > STRAGGLER_SECONDS
            self.slow[rank].append(over)
            if over and rank not in self.stragglers and sum(self.slow[rank]) >= WINDOWS:
                self.stragglers.add(rank)
                why = f", clocks lowered by {throttled[rank]}" if throttled[rank] else ""
                times = f"{seconds / middle:.2f} times" if middle > 0 else "more than"
                said.append(
                    f"straggler: {self._who(rank)} takes {seconds:.3g} s a step, {times} the "
                    f"median of {middle:.3g} s, of which {data_wait[rank]:.0%} waits for data{why}"
                )
            elif rank in self.stragglers and not any(self.slow[rank]):
                self.stragglers.discard(rank)
                said.append(f"{self._who(rank)} is no straggler any more")
        return said

    def _faults(self, table: dict[str, Sequence[float]]) -> list[str]:
        """XID events and ECC errors, each once."""
        said = []
        for name, what in (("gpu_xid", "XID {:.0f}"), ("gpu_ecc_errors", "{:.0f} uncorrected ECC errors")):
            for rank, value in enumerate(table[name]):
                if value > 0 and self.reported.get((name, rank)) != value:
                    self.reported[name, rank] = value
                    said.append(f"the GPU of {self._who(rank)} reports {what.format(value)}")
        return said

    def _who(self, rank: int) -> str:
        return f"rank {rank} ({self.hosts[rank]})"


def own_seconds(step: Sequence[float], collective: Sequence[float]) -> list[float]:
    """Step times less the time that each rank waits longer in collectives than the one that waits least."""
    known = _there(collective)
    least = min(known, default=0.0)
    return [
        seconds if math.isnan(waits) else max(0.0, seconds - (waits - least))
        for seconds, waits in zip(step, collective, strict=True)
    ]


def _there(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _sum(values: Sequence[float]) -> float:
    return sum(_there(values)) if _there(values) else math.nan


def _short(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None


def _throttles(bits: float) -> str:
    return "" if math.isnan(bits) else " and ".join(name for bit, name in THROTTLES.items() if int(bits) & bit)
