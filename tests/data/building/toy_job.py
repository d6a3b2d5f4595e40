"""A build that needs no encoder: small arrays that depend on the key alone. Also a command:
``python -m tests.data.building.toy_job OUTPUT [--workers N] [--delay S] ...``."""

import argparse
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.building.build import build
from stagecoach.data.building.jobs import BuildJob, EncodedSample, RawError, RawItem, Statistics
from stagecoach.data.building.options import BuildOptions
from stagecoach.data.building.worker_rank import WorkerRank
from stagecoach.data.files import TEMPORARY, sha256_file
from stagecoach.data.format.schema import Field, SampleSchema

OPTIONS = BuildOptions(holdout=0.3, skip_bad=True)
ROOT = Path(__file__).parents[3]
SCHEMA = SampleSchema("toy_build", 1, (Field("values", "f32", ("n", 4)), Field("place", "i64", ())))


class ToyStatistics(Statistics):
    def __init__(self) -> None:
        self._sum, self._count = np.zeros(4), 0

    def add(self, sample: EncodedSample) -> None:
        self._sum += sample.arrays["values"].astype(np.float64).sum(0)
        self._count += sample.counted

    def as_dict(self) -> dict[str, Any]:
        return {"sum": self._sum.tolist(), "count": self._count}


class ToyJob(BuildJob):
    """``count`` items; ``bad`` ones fail when read, ``suspect`` ones already when looked at. An item ``deadly`` kills
    its process where the file ``trigger`` does not exist yet; ``hanging`` is the same without an end. ``raw``: folder
    of files ``<key>.txt`` that hold the numbers of the samples."""

    schema = SCHEMA
    together = 2
    on_device = False

    def __init__(
        self,
        count: int = 12,
        *,
        part_items: int = 3,
        bad: tuple[str, ...] = (),
        suspect: tuple[str, ...] = (),
        unusable: int = 0,
        delay: float = 0.0,
        encoder: str = "one",
        deadly: str = "",
        failing: str = "",
        version: int = 1,
        raw: Path | None = None,
    ) -> None:
        self.count, self.part_items, self.bad, self.suspect = count, part_items, bad, suspect
        self.unusable, self.delay, self.encoder = unusable, delay, encoder
        self.deadly, self.failing, self.version, self.starts = deadly, failing, version, 0
        self.raw = raw

    def items(self) -> tuple[list[RawItem], list[tuple[str, RawError]]]:
        items = [RawItem(f"item{n:03d}", None if n % 4 else "train", n) for n in range(self.count)]
        return items, [(f"entry {n}", RawError(f"list: entry {n} is empty")) for n in range(self.unusable)]

    def files(self, item: RawItem) -> list[Path]:
        return [self.raw / f"{item.key}.txt"] if self.raw else []

    def settings(self) -> dict[str, Any]:
        return {"version": self.version, "size": {"n": 5}}

    def check(self, item: RawItem) -> None:
        if item.key in self.suspect:
            raise RawError(f"/raw/{item.key}.bin: 7 bytes found, expected 8")

    def start(self) -> None:
        self.starts += 1

    def encoders(self) -> dict[str, Any]:
        return {"toy": {"name": self.encoder, "path_name": "toy", "sha256": "0" * 64, "dtype": "float32"}}

    def prepare(self, item: RawItem) -> int:
        if item.key in self.bad:
            raise RawError(f"/raw/{item.key}.bin: cut after {item.record} bytes, expected more")
        return int(self.files(item)[0].read_text()) if self.raw else item.record

    def encode(self, items: list[RawItem], prepared: list[int]) -> list[EncodedSample]:
        assert self.starts
        assert len(items) <= self.together
        time.sleep(self.delay)
        if self.deadly in [item.key for item in items]:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.failing in [item.key for item in items]:
            raise RuntimeError("a fault of the encoder")
        samples = []
        for item, number in zip(items, prepared, strict=True):
            values = np.random.default_rng(number).random((number % 3 + 1, 4)).astype(np.float32)
            samples.append(EncodedSample({"values": values, "place": np.array(number, np.int64)}, {"key": item.key}, 1))
        return samples

    def statistics(self) -> ToyStatistics:
        return ToyStatistics()

    def summary(self, statistics: dict[str, Any]) -> dict[str, Any]:
        return {"counted": sum(split["count"] for split in statistics.values())}


def hashes(folder: Path) -> dict[str, str]:
    """Of every file below, also hidden and temporary ones."""
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def job(**changes) -> ToyJob:
    return ToyJob(**{"bad": ("item005",), **changes})


def run(output, worker_rank=None, made=None, options=OPTIONS):
    return build(made or job(), output, options, worker_rank=worker_rank or WorkerRank())


def assert_whole(output: Path, expected: dict[str, str]) -> None:
    assert hashes(output) == expected
    assert [p for p in output.parent.rglob("*") if p.name.startswith(TEMPORARY) or p.name == ".build"] == []


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--raw", type=Path)
    arguments = parser.parse_args()
    made = job(count=arguments.count, delay=arguments.delay, raw=arguments.raw)
    report = build(made, arguments.output, BuildOptions(workers=arguments.workers, skip_bad=True, holdout=0.3))
    print(json.dumps(report.as_dict()))


if __name__ == "__main__":
    main()
