"""The watchers of one and of two nodes over real processes, which are ranks without an engine."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stagecoach.trainer.watch import node
from stagecoach.trainer.watch.judge import Bounds
from stagecoach.trainer.watch.node import RankPlace, WatchConfig
from stagecoach.trainer.watch.record import SENSORS, Beat, Page, page_path
from tests.tiny_data import ROOT

BOUNDS = Bounds(still=0.6, slow=30.0, data=0.6, medians=1.0)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


class Job:
    """``nodes`` times two ranks and their watchers."""

    def __init__(
        self,
        folder: Path,
        nodes: int = 1,
        on_hang: str = "stop",
        steps: int = 10000,
        stuck: str = "",
        away: bool = False,
    ) -> None:
        self.run, size = folder / "run", 2 * nodes
        (self.run / "watch").mkdir(parents=True)
        if away:  # opening it waits, as on a file system that does not answer
            os.mkfifo(self.run / "watch" / "node_0000.json")
        self.memory = folder / "memory"
        (self.memory / "meet").mkdir(parents=True)
        arguments = [str(self.memory), "{rank}", str(size), str(steps), stuck]
        script = str(Path(__file__).with_name("rank.py"))
        self.ranks = [
            subprocess.Popen([sys.executable, script, *(a.format(rank=r) for a in arguments)], env=ENVIRONMENT)
            for r in range(size)
        ]
        until(lambda: len(list(self.memory.glob("ready_*"))) == size)
        self.places = tuple(RankPlace(r, f"host{r // 2}", r // 2, p.pid) for r, p in enumerate(self.ranks))
        self.on_hang, self.errors = on_hang, subprocess.PIPE if away else None
        self.watchers = [self.watcher(number) for number in range(nodes)]

    def watcher(self, number: int) -> subprocess.Popen:
        places = str(self.memory), str(self.run), number, self.places
        config = WatchConfig("t", *places, BOUNDS, self.on_hang, 75, poll=0.05, copy=0.2)
        started = subprocess.Popen(
            [sys.executable, "-m", "stagecoach.trainer.watch.node"],
            stdin=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=ENVIRONMENT,
        )
        started.stdin.write(config.dumps() + "\n")
        started.stdin.close()
        return started

    def codes(self) -> list[int]:
        return [process.wait(30) for process in self.ranks]

    def log(self) -> str:
        path = self.run / "train.log"
        return path.read_text() if path.exists() else ""

    def finding(self) -> tuple[dict, dict[int, str]]:
        """What was found, and the stacks by rank."""
        (path,) = self.run.glob("watch/hang_*/finding.json")
        stacks = {int(p.stem[5:]): p.read_text() for p in path.parent.glob("rank_*.txt")}
        return json.loads(path.read_text()), stacks

    def close(self) -> None:
        for process in [*self.ranks, *self.watchers]:
            process.kill()
            process.wait()


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def job(tmp_path):
    jobs = []

    def make(**options) -> Job:
        jobs.append(Job(tmp_path, **options))
        return jobs[-1]

    yield make
    for one in jobs:
        one.close()


def warm(job: Job) -> None:
    """Until steps are made under a watcher."""
    until(lambda: (job.run / "watch" / "node_0000.json").exists())
    first = len(list((job.memory / "meet").iterdir()))
    until(lambda: len(list((job.memory / "meet").iterdir())) > first + 8)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_stopped_rank_is_named_by_its_node_or_by_rank_0_and_all_leave_with_75_and_stacks(job, rank):
    one = job(nodes=2)
    warm(one)
    os.kill(one.ranks[rank].pid, signal.SIGSTOP)
    assert one.codes() == [75] * 4
    finding, stacks = one.finding()
    assert (finding["kind"], finding["ranks"]) == ("stopped", [rank])
    assert f"rank {rank} (host{rank // 2}, pid {one.ranks[rank].pid})" in one.log()
    assert "in phase step at step" in one.log() or "in phase data at step" in one.log()
    assert sorted(stacks) == [0, 1, 2, 3]
    assert all("rank.py" in text and "most recent call first" in text for text in stacks.values())
    until(lambda: not one.memory.exists() and not list((one.run / "watch").glob("node_*")))


def test_a_killed_rank_is_named_and_the_others_leave_with_75(job):
    one = job()
    warm(one)
    one.ranks[1].kill()
    assert one.codes() == [75, -signal.SIGKILL]
    finding, stacks = one.finding()
    assert (finding["kind"], finding["ranks"]) == ("died", [1])
    assert "wait_for_the_others" in stacks[0]


def test_the_rank_that_stands_still_in_its_own_code_is_named_and_a_long_phase_is_not(job):
    one = job(stuck="1@20")
    until(lambda: (one.memory / "stuck").exists())
    assert not one.log()
    assert one.codes() == [75, 75]
    finding, stacks = one.finding()
    assert (finding["kind"], finding["ranks"]) == ("still", [1])
    assert "in phase data at step 20 of stage 1" in finding["text"]
    assert "in main" in stacks[1]


@pytest.mark.slow
def test_where_the_recipe_says_wait_the_rank_is_named_once_and_the_run_goes_on(job):
    one = job(on_hang="wait", steps=200)
    warm(one)
    os.kill(one.ranks[1].pid, signal.SIGSTOP)
    until(lambda: "the job goes on waiting" in one.log())
    time.sleep(1.0)
    os.kill(one.ranks[1].pid, signal.SIGCONT)
    assert one.codes() == [0, 0]
    assert one.log().count("stands") + one.log().count("has been stopped") == 1
    assert "all ranks go on after" in one.log()


@pytest.mark.slow
def test_a_whole_node_that_is_gone_is_named_by_rank_0s_and_rank_0s_by_the_others(job):
    one = job(nodes=2)
    warm(one)
    for process in (*one.ranks[2:], one.watchers[1]):
        process.kill()
    assert one.codes()[:2] == [75, 75]
    finding, _ = one.finding()
    assert (finding["kind"], finding["ranks"]) == ("silent", [2, 3])


def test_the_loss_of_rank_0s_node_ends_the_others(job):
    one = job(nodes=2)
    warm(one)
    for process in (*one.ranks[:2], one.watchers[0]):
        process.kill()
    assert one.codes()[2:] == [75, 75]
    assert "nothing has been heard of host0, the node of rank 0" in one.log()


def test_a_run_folder_that_does_not_answer_is_named_and_stops_no_watcher(job):
    one = job(away=True)
    says = one.watchers[0].stderr.readline()
    assert says.startswith(f"warning: {one.run} does not answer, or takes no file, since ")
    os.kill(one.ranks[1].pid, signal.SIGSTOP)
    assert one.codes() == [75, 75]
    assert "error: rank 1 (host0, pid" in one.watchers[0].stderr.read()
    assert one.watchers[0].wait(10) == 0
    assert not one.memory.exists()


def test_a_driver_that_does_not_answer_stops_no_watcher_and_its_old_numbers_go(tmp_path, monkeypatch):
    class Stuck:
        def __init__(self, ranks):
            self.ranks, self.answered = ranks, False

        def sample(self):
            if self.answered:
                threading.Event().wait()
            self.answered = True
            return [[1.0] * len(SENSORS) for _ in self.ranks]

    monkeypatch.setattr(node, "NodeSensors", Stuck)
    (tmp_path / "memory").mkdir()
    page = Page(page_path(tmp_path / "memory", 0), create=True)
    page.write(Beat(1, 0.0, 1, 0, 0, "build", 0.0, 0))
    place = (RankPlace(0, "host0", 0, os.getpid()),)
    config = WatchConfig("t", str(tmp_path / "memory"), str(tmp_path), 0, place, BOUNDS, "stop", 75, 0.01, 0.05)
    thread = threading.Thread(target=node.Watcher(config).watch, daemon=True)
    thread.start()
    until(lambda: page.sensors()[0] == 1.0)
    until(lambda: math.isnan(page.sensors()[0]))
    page.write(Beat(2, 0.0, 1, 0, 0, "end", 0.0, 0))
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.slow
def test_a_watcher_that_takes_the_place_of_a_dead_one_is_obeyed(job):
    one = job(nodes=2, on_hang="wait")
    warm(one)
    for rank in (3, 2):
        named, over = (one.log().count(words) for words in ("goes on waiting", "all ranks go on after"))
        os.kill(one.ranks[rank].pid, signal.SIGSTOP)
        until(lambda: one.log().count("goes on waiting") > named)  # noqa: B023
        newest = max(one.run.glob("watch/hang_*"), key=lambda path: path.stat().st_mtime_ns)
        until(lambda: len(list(newest.glob("rank_*.txt"))) == 4)  # noqa: B023
        os.kill(one.ranks[rank].pid, signal.SIGCONT)
        until(lambda: one.log().count("all ranks go on after") > over)  # noqa: B023
        one.watchers[0].kill()
        one.watchers.append(one.watcher(0))


def test_a_run_that_ends_leaves_no_word_and_no_file(job):
    one = job(nodes=2, steps=30)
    (one.run / "watch" / "node_0009.json").touch()  # of a start with more nodes, all of which were killed
    assert one.codes() == [0] * 4
    assert [watcher.wait(10) for watcher in one.watchers] == [0, 0]
    assert one.log() == ""
    assert not list((one.run / "watch").iterdir())
