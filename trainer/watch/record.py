"""A rank's heartbeat: a page of memory on its node that the rank writes and the node's watcher reads.

Imports neither torch nor numpy: the watcher is a process of its own and small.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

PHASES = ("start", "build", "wait", "boundary", "validation", "preview", "save", "compile", "data", "step", "end")
"""What a rank can be doing, in the order in which a step has them: of two ranks at the same step the one in the earlier
phase is behind. ``boundary`` lies between two steps, ``compile`` is the first step of a start, ``end`` says that the
rank has left by itself."""
SHORT = ("boundary", "data", "step")
"""Phases that a run is in again and again; the others may rightly take minutes."""

SENSORS = (
    "cpu_percent",
    "rss_gib",
    "host_memory_percent",
    "network_sent_mb_per_second",
    "network_received_mb_per_second",
    "infiniband_mb_per_second",
    "gpu_utilisation",
    "gpu_power_watts",
    "gpu_temperature_c",
    "gpu_clock_mhz",
    "gpu_throttle_bits",
    "gpu_ecc_errors",
    "gpu_xid",
)
"""Numbers of one rank; NaN where the system does not have them. Those of host and network are of the whole node, rates
are over the time since the last sample; ``gpu_xid`` is the newest XID since the start, 0 where there was none."""
MISSING = math.nan

SIZE = 4096
_BEAT = struct.Struct("<qdqqqqdq")
_PULSE = struct.Struct("<qqq")
_ORDER = struct.Struct("<qq")
PULSE_AT, ORDER_AT, SENSORS_AT = 256, 512, 1024
KEEP_ON, DUMP, LEAVE = 0, 1, 2
"""Orders of a watcher: nothing, write the flight recorder, leave with a code."""


@dataclass(frozen=True)
class Beat:
    """What a rank's page says. ``beats`` counts changes by the training thread and ``pulses`` seconds in which the
    interpreter ran; ``collectives`` have been started; ``code`` is the exit code of one that has left."""

    beats: int
    time: float
    stage: int
    step: int
    micro: int
    phase: str
    median: float
    code: int
    pulses: int = 0
    collectives: int = 0
    dumped: int = 0


class Page:
    """One rank's page, opened by the rank (``create``) or by its node's watcher."""

    def __init__(self, path: Path, create: bool = False) -> None:
        self.path = path
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            if create:
                # Not by ftruncate: where the memory is full, a write to a page that is not there yet is a SIGBUS.
                os.posix_fallocate(descriptor, 0, SIZE)
            self.map = mmap.mmap(descriptor, SIZE)
            if create:
                self.write_sensors([MISSING] * len(SENSORS))
        finally:
            os.close(descriptor)

    def write(self, beat: Beat) -> None:
        """The training thread's part."""
        values: tuple[float, ...] = (beat.beats, beat.time, beat.stage, beat.step, beat.micro)
        values += (PHASES.index(beat.phase), beat.median, beat.code)
        _BEAT.pack_into(self.map, 0, *values)

    def pulse(self, pulses: int, collectives: int, dumped: int) -> None:
        """The pulse thread's part."""
        _PULSE.pack_into(self.map, PULSE_AT, pulses, collectives, dumped)

    def read(self) -> Beat:
        beats, time, stage, step, micro, phase, median, code = _BEAT.unpack_from(self.map, 0)
        pulse = _PULSE.unpack_from(self.map, PULSE_AT)
        return Beat(beats, time, stage, step, micro, PHASES[phase], median, code, *pulse)

    def order(self, order: int, code: int = 0) -> None:
        """The watcher's part: what the rank is to do."""
        _ORDER.pack_into(self.map, ORDER_AT, order, code)

    def ordered(self) -> tuple[int, int]:
        return _ORDER.unpack_from(self.map, ORDER_AT)

    def write_sensors(self, values: list[float]) -> None:
        struct.pack_into(f"<{len(values)}d", self.map, SENSORS_AT, *values)

    def sensors(self) -> list[float]:
        return list(struct.unpack_from(f"<{len(SENSORS)}d", self.map, SENSORS_AT))

    def close(self) -> None:
        self.map.close()


def page_path(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank:04d}"


def stacks_path(folder: Path, rank: int) -> Path:
    """Where faulthandler writes a rank's Python stacks."""
    return folder / f"rank_{rank:04d}.stacks"


def flight_path(folder: Path, rank: int) -> Path:
    """Where a rank writes PyTorch's flight recorder."""
    return folder / f"rank_{rank:04d}.flight.json"
