"""What reading costs: this project's stream, webdataset on the same tars, mosaicml-streaming on the same samples.

    python benchmarks/stream.py speed --folder /tmp/stream-benchmark [--streaming-python VENV/bin/python]
    python benchmarks/stream.py memory

``speed``: each reader alone in a process on one core, from the page cache, samples of 1.8 MB decoded to arrays: samples
per second, CPU seconds per sample, and the time to the first sample after a resume deep in an epoch. Readers take turns
in several rounds and the best of each counts, so that what else the machine does weighs little. ``memory``: the
resident set of a process while the stream hands out 100,000 samples. mosaicml-streaming pins other versions of torch
and needs a virtual environment of its own, named by ``--streaming-python``; without it that column is left out.
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from stagecoach.data.files import MANIFEST
from stagecoach.data.format.schema import Field, SampleSchema
from stagecoach.data.format.shards import ShardWriter, write_manifest
from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.data.streaming.mixture import DatasetMixture
from stagecoach.data.streaming.plan import SamplePlan
from stagecoach.data.streaming.stream import Batching, Stream
from stagecoach.trainer.cli import json_output, run_main

LARGE = SampleSchema(
    "stream_benchmark", 1, (Field("latent", "bf16", (16, 16, 44, 64)), Field("text", "bf16", ("L", 4096), pad=0))
)
"""A clip's latent and its text states: 1.8 MB at 40 tokens."""
SMALL = SampleSchema("stream_memory", 1, (Field("latent", "bf16", (16, 8, 8)), Field("text", "bf16", ("L", 64), pad=0)))
READERS = Path(__file__).with_name("stream_readers.py")
DEPTHS = (0.1, 0.5, 0.9)
GROWTH_MB = 20.0
"""Growth between a tenth and all of the samples that passes for none: allocators do not return to the byte."""


def write_set(folder: Path, schema: SampleSchema, samples: int, tokens: int, max_bytes: int) -> None:
    """Shards of random finite numbers, once."""
    if (folder / MANIFEST).exists():
        return
    rng, infinite = np.random.default_rng(0), 0x7F80  # of bf16; all below are finite
    shape = schema.fields[0].shape
    with ShardWriter(folder, schema, max_bytes=max_bytes) as writer:
        for number in range(samples):
            writer.add(
                f"clip{number:06d}",
                {
                    "latent": rng.integers(0, infinite, shape).astype(np.uint16),
                    "text": rng.integers(0, infinite, (tokens, schema.fields[1].shape[1])).astype(np.uint16),
                },
            )
    write_manifest(folder, schema, writer.shards, {}, {})


def stream_of(folder: Path, schema: SampleSchema, batch: int, start: int, stop: int, workers: int) -> Stream:
    mixture = DatasetMixture([ShardSet.open(folder, schema)])
    plan = SamplePlan(mixture.members()[0], global_batch=batch, seed=0)
    return Stream(
        mixture,
        plan=plan,
        batching=Batching(batch, batch, 1),
        rank=0,
        start_step=start,
        stop_step=stop,
        workers=workers,
    )


def speed(arguments: Namespace) -> dict[str, Any]:
    """Run each reader in processes of its own and set the best rounds side by side."""
    folder = arguments.folder
    write_set(folder / "tars", LARGE, arguments.samples, 40, 500 * 10**6)
    readers = {
        "stagecoach": sys.executable,
        "stagecoach batches": sys.executable,
        "webdataset": sys.executable,
        "webdataset batches": sys.executable,
    }
    if arguments.streaming_python:
        _reader(arguments.streaming_python, "write-mds", folder)
        readers["mosaicml-streaming"] = arguments.streaming_python
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in readers}
    for _ in range(arguments.rounds):
        for name, python in readers.items():
            rounds[name].append(_reader(python, name, folder))
    best = {
        name: {
            "samples_per_second": max(r["samples_per_second"] for r in found),
            "cpu_ms_per_sample": min(r["cpu_ms_per_sample"] for r in found),
        }
        for name, found in rounds.items()
    }
    resumed = {
        name: {
            str(depth): min(
                _reader(python, f"resume {name}", folder, depth)["seconds"] for _ in range(arguments.rounds)
            )
            for depth in DEPTHS
        }
        for name, python in readers.items()
        if "batches" not in name
    }
    ours = best["stagecoach"]
    ratios = {
        name: {
            "samples_per_second": ours["samples_per_second"] / found["samples_per_second"],
            "cpu_per_sample": found["cpu_ms_per_sample"] / ours["cpu_ms_per_sample"],
        }
        for name, found in best.items()
        if name in ("webdataset", "mosaicml-streaming")
    }
    ratios["webdataset batches"] = {
        "samples_per_second": best["stagecoach batches"]["samples_per_second"]
        / best["webdataset batches"]["samples_per_second"],
        "cpu_per_sample": best["webdataset batches"]["cpu_ms_per_sample"]
        / best["stagecoach batches"]["cpu_ms_per_sample"],
    }
    for name, found in resumed.items():
        if name != "stagecoach":
            ratios[name]["first_sample_after_resume"] = {
                depth: seconds / resumed["stagecoach"][depth] for depth, seconds in found.items()
            }
    return {"readers": best, "first_sample_after_resume_seconds": resumed, "times_better_than": ratios}


def _reader(python: str | Path, name: str, folder: Path, depth: float = 0.0) -> dict[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(READERS.parents[1])}
    done = subprocess.run(
        [str(python), str(READERS), name, str(folder), str(depth)], env=environment, text=True, capture_output=True
    )
    if done.returncode:
        raise RuntimeError(f"reader {name!r} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def memory(arguments: Namespace) -> dict[str, Any]:
    """Resident set over ``arguments.samples`` samples. Raises ``MemoryError`` where it grew."""
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder) / "tars", SMALL, 2000, 24, 10**6)
        steps = arguments.samples // 8
        points: dict[int, float] = {}
        for step, _, _ in stream_of(Path(folder) / "tars", SMALL, 8, 0, steps, workers=2):
            if (step + 1) % max(1, steps // 10) == 0:
                points[(step + 1) * 8] = _resident_mb()
    growth = points[max(points)] - points[min(points)]
    if growth > GROWTH_MB:
        raise MemoryError(
            f"the resident set grew by {growth:.1f} MB from {min(points):,} to {max(points):,} samples, "
            f"expected at most {GROWTH_MB:g}; see {points}"
        )
    return {"resident_mb": points, "growth_mb": growth}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("speed")
    command.add_argument("--folder", type=Path, required=True, help="where the samples are written, and kept")
    command.add_argument("--samples", type=int, default=1000)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--streaming-python", type=Path, metavar="PYTHON", help="that has mosaicml-streaming")
    command.add_argument("--json", action="store_true")
    command = commands.add_parser("memory")
    command.add_argument("--samples", type=int, default=100_000)
    command.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with json_output(arguments.json) as emit:
        result = {"speed": speed, "memory": memory}[arguments.command](arguments)
        emit(result)
    if not arguments.json:
        print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    run_main(main)
