"""Starts the watch of a run: every rank's heartbeat, and one watcher process per node."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from typing_extensions import TypedDict  # pydantic takes the one of typing from Python 3.12 on

from stagecoach.data.reading import read_json
from stagecoach.trainer.distributed import World, attempt, from_first, together
from stagecoach.trainer.interrupt import EXIT_CODE, PEER_LOST, Interrupted
from stagecoach.trainer.settings import FirstRankError
from stagecoach.trainer.watch.heartbeat import Heartbeat
from stagecoach.trainer.watch.judge import GONE, Bounds
from stagecoach.trainer.watch.node import RankPlace, WatchConfig, process_state

log = logging.getLogger(__name__)

MEMORY = Path("/dev/shm")
OWNERS = "owners.json"
MOST_STARTS = 3
_started: list[subprocess.Popen[str]] = []
"""Watchers that have not been reaped."""


class Owners(TypedDict):
    """``owners.json``: the processes that a folder of pages belongs to."""

    machine: str
    pids: list[Annotated[int, Field(ge=1, lt=2**31)]]


@dataclass(frozen=True)
class Watch:
    """A run that is watched: where all ranks are."""

    places: tuple[RankPlace, ...]

    @property
    def hosts(self) -> list[str]:
        """By rank."""
        return [place.host for place in self.places]

    @property
    def nodes(self) -> int:
        return len({place.node for place in self.places})

    def leads(self, rank: int) -> bool:
        """Whether this is the first rank of its node."""
        return all(place.node != self.places[rank].node for place in self.places[:rank])


@contextmanager
def watching(
    world: World, run: str | Path, on_hang: Literal["wait", "stop"], bounds: Bounds, copy: float = 3.0
) -> Iterator[Watch]:
    """Watch all ranks while the block runs. A collective at its start.

    Where a rank stands still or dies, the watcher ends this process with ``interrupt.PEER_LOST`` (``on_hang: stop``).
    """
    places, token = _places(world)
    me = places[world.rank]
    folder = (MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir())) / f"stagecoach-watch-{os.getuid()}-{token}"
    mine = [place.rank for place in places if place.node == me.node]
    config = WatchConfig(
        token, str(folder), str(run), me.node, places, bounds, on_hang, PEER_LOST, min(1.0, bounds.still / 10), copy
    )
    watcher = _WatcherProcess(config) if world.rank == mine[0] else None
    hearts: list[Heartbeat] = []

    def begin() -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if watcher:
            remove_leftovers(folder.parent)
            owners = {"machine": _machine(), "pids": [places[rank].pid for rank in mine]}
            (folder / OWNERS).write_text(json.dumps(owners))
        hearts.append(Heartbeat(folder, world.rank))
        hearts[0].start()

    try:
        together(world, attempt(begin))
    except Exception:
        for heart in hearts:
            heart.end(1)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (heart,) = hearts
    if watcher:
        heart.every_pulse = watcher.keep  # it opens the pages of all ranks of its node
    code = 1
    try:
        yield Watch(places)
        code = 0
    except Interrupted:
        code = EXIT_CODE
        raise
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
        raise
    except (FirstRankError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        # Where another rank has died, collectives fail here: the watcher names it and ends this process.
        seconds = _seconds_to_be_ended(places, me, copy)
        if seconds:
            log.error(f"{' '.join(str(error).split())[:300]}; looking for {seconds:.0f} s whether a rank has died")
            time.sleep(seconds)
        raise
    finally:
        heart.end(code)


def remove_leftovers(memory: Path) -> None:
    """Remove the folders of runs all of whose processes, watcher included, were killed at once."""
    for owners in memory.glob(f"stagecoach-watch-{os.getuid()}-*/{OWNERS}"):
        try:
            said = read_json(owners, Owners)
            if said["machine"] == _machine() and all(process_state(pid) in GONE for pid in said["pids"]):
                shutil.rmtree(owners.parent, ignore_errors=True)
        except (OSError, ValueError):  # just being written, or removed by another
            continue


def _seconds_to_be_ended(places: Sequence[RankPlace], me: RankPlace, copy: float) -> float:
    time.sleep(0.5)
    if any(place.node == me.node and process_state(place.pid) in GONE for place in places):
        return 15.0
    return 4 * copy + 15.0 if any(place.node != me.node for place in places) else 0.0


def _places(world: World) -> tuple[tuple[RankPlace, ...], str]:
    """Where all ranks are, the nodes numbered in the order of their first ranks, and a name for this start."""
    gpu = None
    if world.device.type == "cuda":
        gpu = f"GPU-{torch.cuda.get_device_properties(world.device).uuid}"
    said: list[tuple[str, str, int, str | None]] = [("", "", 0, None)] * world.size
    dist.all_gather_object(said, (_machine(), socket.gethostname(), os.getpid(), gpu))
    machines = list(dict.fromkeys(machine for machine, *_ in said))
    places = [
        RankPlace(rank, host, machines.index(machine), pid, gpu) for rank, (machine, host, pid, gpu) in enumerate(said)
    ]
    return tuple(places), from_first(uuid.uuid4().hex[:12])


def _machine() -> str:
    """What two processes share that see each other's memory and numbers: kernel, PID namespace and /dev/shm."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino} {os.stat(MEMORY).st_dev if MEMORY.is_dir() else 0}"


class _WatcherProcess:
    """The watcher as a child of the node's first rank, in a session of its own so that it outlives the rank. It leaves
    when all ranks of its node have left; nobody waits for that."""

    def __init__(self, config: WatchConfig) -> None:
        self.config = config
        self.process: subprocess.Popen[str] | None = None
        self.starts = 0

    def keep(self) -> None:
        """Start it, and again (a few times) where something has ended it."""
        if (self.process is not None and self.process.poll() is None) or self.starts > MOST_STARTS:
            return
        if self.process is not None:
            goes_on = "this node is not watched any more" if self.starts == MOST_STARTS else "it is started again"
            say = f"the watcher of {socket.gethostname()} has ended with exit code {self.process.returncode}; {goes_on}"
            log.warning(say, extra={"every_node": True})
        if self.starts == MOST_STARTS:
            self.starts += 1
            return
        self.starts += 1
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stagecoach.trainer.watch.node"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert self.process.stdin is not None
        self.process.stdin.write(self.config.dumps() + "\n")
        self.process.stdin.close()
        _started.append(self.process)
        _started[:] = [process for process in _started if process.poll() is None]
