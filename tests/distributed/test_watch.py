"""A real run of two ranks: one is slow, one is stopped, one is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stagecoach.trainer.reporting.report import write_report
from tests.distributed.cases import toy_recipe
from tests.tiny_data import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]
SECONDS = 2.0


class Launch:
    """Two ranks of ``tests.distributed.watched``, started again and again in one run folder."""

    def __init__(self, folder: Path, shards: str) -> None:
        self.run, self.file = folder / "run", folder / "recipe.json"
        changes = {"watch": {"seconds": SECONDS}, "steps": 100_000, "checkpoint_every": 100_000}
        recipe = toy_recipe(shards, str(self.run), **changes)
        recipe = recipe.model_copy(update={"logging": recipe.logging.model_copy(update={"every": 5})})
        self.file.write_text(json.dumps(recipe.model_dump(mode="json")))
        self.ranks: list[subprocess.Popen] = []

    def start(self, slow_rank: int | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.distributed.watched", str(self.file), str(slow_rank)]
        self.ranks = [
            subprocess.Popen(command, cwd=ROOT, env={**os.environ, **common, "RANK": r, "LOCAL_RANK": r})
            for r in ("0", "1")
        ]

    def log(self) -> str:
        path = self.run / "train.log"
        return path.read_text() if path.exists() else ""

    def until(self, word: str, seconds: float = 120.0) -> float:
        """Seconds until ``train.log`` says it."""
        began = time.monotonic()
        while word not in self.log():
            assert time.monotonic() - began < seconds, f"{word!r} is not in the log:\n{self.log()[-3000:]}"
            time.sleep(0.05)
        return time.monotonic() - began

    def codes(self) -> list[int]:
        return [process.wait(60) for process in self.ranks]

    def stacks(self) -> list[str]:
        newest = max(self.run.glob("watch/hang_*"))
        return [(newest / f"rank_{rank:04d}.txt").read_text() for rank in (0, 1)]


@pytest.fixture
def launch(tmp_path, shards):
    one = Launch(tmp_path, shards)
    yield one
    for process in one.ranks:
        process.kill()
        process.wait()


def test_a_slow_a_stopped_and_a_killed_rank_are_named_and_the_job_can_be_started_again(launch):
    launch.start(slow_rank=1)
    launch.until("straggler: rank 1 (")
    os.kill(launch.ranks[1].pid, signal.SIGSTOP)
    assert launch.until("the process has been stopped for") < SECONDS + 10
    assert launch.codes() == [76, 76]
    text = launch.log()
    named = next(line for line in text.splitlines() if "has been stopped" in line)
    assert f"rank 1 ({socket.gethostname()}, pid {launch.ranks[1].pid}) in phase " in named
    assert "of stage 1" in named
    assert "straggler: rank 0" not in text
    for stacks in launch.stacks():
        assert "most recent call first" in stacks
        assert "stage.py" in stacks
    assert list(launch.run.glob("watch/hang_*/rank_0000.flight.json"))

    rows = [json.loads(line) for line in (launch.run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "ranks" in row]
    late = rows[-1]
    assert late["cluster/slowest_rank"] == 1
    assert late["ranks"]["step_seconds"][1] > 1.5 * late["ranks"]["step_seconds"][0]
    assert late["ranks"]["rss_gib"][1] > 0.05
    write_report(launch.run)
    page = (launch.run / "report.html").read_text()
    assert "Cluster: 2 ranks" in page
    assert f"highest on the mean: rank 1 ({socket.gethostname()})" in page

    launch.start()
    launch.until("stage 1 step 15/")  # of this start: the run has no checkpoint, so its metrics start over
    before = text.count("stage 1 step 15/")
    while launch.log().count("stage 1 step 15/") == before:
        time.sleep(0.05)
    launch.ranks[1].kill()
    assert launch.codes() == [76, -signal.SIGKILL]
    assert f"pid {launch.ranks[1].pid}) in phase" in launch.log()
    assert "the process is gone" in launch.log()
