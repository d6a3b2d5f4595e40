"""What watching and the numbers of all ranks cost rank 0 at scale, through the real code but without an engine.

    python benchmarks/watch_scale.py [--ranks 128] [--lines 50]

Prints as JSON: the time and memory that rank 0 spends per log line (the gathered rows reduced, metrics file and
TensorBoard written), what a beat costs a rank, a turn of the watcher of rank 0's node (all nodes' files read, all
ranks judged), and the bytes that go into the run folder. A step is taken to last 3 s.
"""

import math
import os
import random
import sys
import tempfile
import time
import tracemalloc
from argparse import ArgumentParser
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.trainer.cli import json_output, run_main
from stagecoach.trainer.interrupt import PEER_LOST
from stagecoach.trainer.reporting.sinks import MetricsFile, TensorBoard
from stagecoach.trainer.watch.heartbeat import Heartbeat
from stagecoach.trainer.watch.judge import Bounds
from stagecoach.trainer.watch.node import RankPlace, WatchConfig, Watcher
from stagecoach.trainer.watch.record import SENSORS
from stagecoach.trainer.watch.view import COLUMNS, ClusterReducer

STEP_SECONDS = 3.0
PER_NODE = 8


def rows(ranks: int, line: int) -> list[list[float]]:
    """What all ranks send: rank 37 is late, GPUs and network have numbers."""
    draw = random.Random(line)
    sensors = [draw.uniform(0, 100) for _ in SENSORS[:-3]] + [0.0, 0.0, 0.0]
    return [
        [STEP_SECONDS, 1.0 if rank != 37 else 0.2, draw.uniform(0, 0.1), draw.uniform(50, 70), *sensors]
        for rank in range(ranks)
    ]


def log_lines(folder: Path, ranks: int, lines: int) -> dict[str, float]:
    """Seconds and bytes of rank 0 per log line."""
    reducer = ClusterReducer([f"node{rank // PER_NODE:02d}" for rank in range(ranks)])
    sinks = [MetricsFile(folder / "metrics.jsonl", 1, 0), TensorBoard(folder / "tb", 0)]
    seconds, held = [], []
    for line in range(lines + 3):
        table = rows(ranks, line)
        began = time.perf_counter()
        view = reducer.reduce(table)
        for sink in sinks:
            sink.cluster(10 * line, view.values, view.ranks)
        seconds.append(time.perf_counter() - began)
        if line == 2:
            tracemalloc.start()
        if line > 2:
            held.append(tracemalloc.get_traced_memory()[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for sink in sinks:
        sink.close()
    return {
        "log_line_seconds": median(seconds[:3]),
        "log_line_seconds_while_memory_is_traced": median(seconds[3:]),
        "log_line_peak_bytes": peak,
        "bytes_kept_per_log_line": max(0.0, (held[-1] - held[len(held) // 2]) / (len(held) - len(held) // 2)),
        "metrics_bytes_per_log_line": (folder / "metrics.jsonl").stat().st_size / (lines + 3),
        "sent_bytes_per_rank_and_log_line": 8 * len(COLUMNS),
    }


def watcher_turns(folder: Path, ranks: int) -> dict[str, float]:
    """Seconds of a beat, and of a turn of rank 0's watcher with the files of all nodes."""
    hearts = []
    memory, run = folder / "memory", folder / "run"
    memory.mkdir()
    run.mkdir()
    for rank in range(ranks):
        heart = Heartbeat(memory, rank)
        heart.beat(stage=1, step=100, phase="step")
        hearts.append(heart)
    beats = 10_000
    began = time.perf_counter()
    for _ in range(beats):
        hearts[0].beat(phase="step")
    beat_seconds = (time.perf_counter() - began) / beats
    places = tuple(RankPlace(r, f"node{r // PER_NODE:02d}", r // PER_NODE, os.getpid()) for r in range(ranks))
    nodes = math.ceil(ranks / PER_NODE)
    watchers = [
        Watcher(WatchConfig("t", str(memory), str(run), node, places, Bounds(), "stop", PEER_LOST, copy=1.0))
        for node in range(nodes)
    ]
    for watcher in watchers[1:]:
        assert watcher.turn()
        watcher.exchange.round()
    seconds = []
    for _ in range(20):
        began = time.process_time()
        assert watchers[0].turn()
        watchers[0].exchange.round()
        seconds.append(time.process_time() - began)
    files = [path.stat().st_size for path in (run / "watch").iterdir()]
    assert len(files) == nodes
    for heart in hearts:
        heart.page.close()
    return {
        "beat_seconds": beat_seconds,
        "watcher_turn_cpu_seconds": median(seconds),
        "run_folder_bytes_per_copy": sum(files),
        "run_folder_files": len(files),
    }


def measure(ranks: int, lines: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        found = log_lines(Path(folder), ranks, lines) | watcher_turns(Path(folder), ranks)
    # A log line comes at most every step; the watcher turns once a second, and its reading of files every third time.
    found["log_line_share_of_a_step"] = found["log_line_seconds"] / STEP_SECONDS
    found["watcher_share_of_a_core"] = found["watcher_turn_cpu_seconds"]
    return {"ranks": ranks, **found}


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=128)
    parser.add_argument("--lines", type=int, default=50)
    arguments = parser.parse_args()
    with json_output(True) as emit:
        found = measure(arguments.ranks, arguments.lines)
        emit(found)
    return 0 if found["log_line_share_of_a_step"] < 0.01 else 1


if __name__ == "__main__":
    run_main(main)
