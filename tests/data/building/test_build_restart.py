"""Stopped anywhere and started again, with any number of workers, a build ends with the same data set."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stagecoach.data.building.finish import finish
from stagecoach.data.building.options import BuildOptions
from stagecoach.data.building.partition import divide
from stagecoach.data.building.worker_rank import WorkerRank
from stagecoach.data.building.workspace import Workspace
from stagecoach.data.files import TEMPORARY, DamagedError, temporary_name
from tests.data.building.toy_job import OPTIONS, ROOT, assert_whole, environment, hashes, job, run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("undisturbed") / "shards"
    run(output)
    return hashes(output)


@pytest.fixture
def unsynced(monkeypatch):
    """Processes are killed here, not machines: what was written need not reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def assert_never_mixed(output: Path, *sets: dict[str, str]) -> None:
    """What readers see is of one data set, and of a split that they see nothing is missing."""
    found = hashes(output) if output.exists() else {}
    seen = {name: value for name, value in found.items() if name[0] != "."}
    splits = {name.partition("/")[0] for name in seen}
    assert any(
        seen == {name: value for name, value in whole.items() if name.partition("/")[0] in splits} for whole in sets
    )


CHANGES = ("rename", "replace", "mkdir", "rmdir", "unlink")
"""What of ``os`` changes names on the disk."""


def killed_at(step: int, work) -> bool:
    """Run ``work`` in a process that ends without notice before its ``step``-th change on the disk; whether it did."""
    child = os.fork()
    if child == 0:
        try:
            _die_at(step)
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), f"failed at step {step}"
    return code == 9


def _die_at(step: int) -> None:
    count = 0

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == step:
                os._exit(9)
            return function(*arguments, **keywords)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))


def go_on(output: Path, size: int, options=OPTIONS) -> None:
    for rank in range(size):
        try:
            run(output, WorkerRank(rank, size), options=options)
        except ValueError as error:
            if "holds finished shards" not in str(error):  # killed when the data set stood: who is alone reads so
                raise


SOME = pytest.param(9, id="some")
ALL = pytest.param(1, id="all", marks=pytest.mark.slow)


@pytest.mark.parametrize("stride", [SOME, ALL])
def test_killed_at_any_change_on_the_disk_others_end_with_the_same_data_set(tmp_path, undisturbed, unsynced, stride):
    step, killed = 1, True
    while killed:
        output = tmp_path / str(step) / "shards"
        output.parent.mkdir()
        killed = killed_at(step, lambda output=output: run(output))
        assert_never_mixed(output, undisturbed)
        go_on(output, step % 3 + 1)
        assert_whole(output, undisturbed)
        step += stride
    assert step > 80, "there are that many changes at least"


@pytest.mark.parametrize("stride", [SOME, ALL])
def test_killed_while_it_replaces_the_old_set_stays_or_the_new_one_comes(tmp_path, undisturbed, unsynced, stride):
    run(tmp_path / "old", made=job(count=5))
    old, options = hashes(tmp_path / "old"), BuildOptions(holdout=0.3, skip_bad=True, replace=True)
    step, killed = 1, True
    while killed:
        output = tmp_path / str(step) / "shards"
        shutil.copytree(tmp_path / "old", output)
        killed = killed_at(step, lambda output=output: run(output, options=options))
        assert_never_mixed(output, old, undisturbed)
        go_on(output, step % 2 + 1, options)
        assert_whole(output, undisturbed)
        step += stride
    assert step > 80


def test_killed_again_and_again_it_advances(tmp_path, undisturbed, unsynced):
    output, kills = tmp_path / "shards", 0
    while killed_at(32, lambda: go_on(output, 1)):
        kills += 1
        assert kills < 30
    assert kills > 3
    assert_whole(output, undisturbed)


@pytest.fixture
def half(tmp_path) -> Path:
    """The folder of a build of which worker 0 of 2 has made its parts."""
    assert not run(tmp_path / "shards", WorkerRank(0, 2)).finished
    return tmp_path / "shards"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-600])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def of_another_build(path: Path) -> None:
    """Whole, but of a build with other settings whose worker did not notice that this one was begun."""
    other = path.parents[4] / "other/shards"
    run(other, WorkerRank(0, 2), job(version=2))
    shutil.rmtree(path.parent)
    shutil.move(other / ".build/parts" / path.parent.name, path.parent)
    shutil.rmtree(other)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        *(
            (damage, name)
            for damage in (cut, flip, Path.unlink)
            for name in ("*.tar", "*.idx", "part.json", "manifest.json")
        ),
        (of_another_build, "part.json"),
    ],
)
def test_a_damaged_part_is_made_again(half, undisturbed, damage, name):
    part = sorted((half / ".build/parts").iterdir())[0]
    damage(next(part.glob(name)))
    again = job()
    report = run(half, made=again)
    assert_whole(half, undisturbed)
    assert report.encoded == 11 - samples_of_first_worker(but=part.name)


def samples_of_first_worker(but: str) -> int:
    return sum(
        item.key != "item005" for part in divide(job(), OPTIONS).parts[0::2] if part.name != but for item in part.items
    )


def test_what_is_whole_is_not_made_again(half, undisturbed):
    run(half, WorkerRank(0, 2), made := job())
    assert made.starts == 0
    run(half)
    assert_whole(half, undisturbed)


def test_a_part_damaged_after_its_worker_looked_is_found_at_the_end(half, undisturbed):
    tar = next((half / ".build/parts/part-000000").glob("*.tar"))
    cut(tar)
    with pytest.raises(DamagedError, match=rf"{tar}: .*bytes, expected .*; start the same command again"):
        run(half, WorkerRank(1, 2))
    assert run(half, WorkerRank(0, 2)).finished
    assert_whole(half, undisturbed)


def test_two_workers_that_both_find_all_parts_there_finish_once(tmp_path, undisturbed, monkeypatch):
    """Both have seen that no part is missing before either has begun to finish."""
    output, results = tmp_path / "shards", []
    division = divide(job(), OPTIONS)
    run(output, WorkerRank(0, 2))
    with monkeypatch.context() as patch:
        patch.setattr(
            "stagecoach.data.building.build.finish", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            run(output, WorkerRank(1, 2))
    assert Workspace(output, division).missing() == []

    def work() -> None:
        finish(Workspace(output, division), job(), skip_bad=True)
        results.append(Workspace(output, division).is_finished())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8
    assert_whole(output, undisturbed)


def test_two_processes_with_the_same_number_do_not_disturb_each_other(tmp_path, undisturbed):
    """As when a scheduler starts a task again while the first still runs."""
    command = [sys.executable, "-m", "tests.data.building.toy_job", tmp_path / "shards", "--delay", "0.05"]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment()) for _ in range(2)]
    codes = [process.wait(60) for process in processes]
    assert codes == [0, 0]
    assert_whole(tmp_path / "shards", undisturbed)


def test_what_dead_processes_left_is_removed_and_what_living_ones_have_is_not(tmp_path):
    output = tmp_path / "shards"
    run(output, WorkerRank(0, 2))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [
        folder / f"{TEMPORARY}x.{os.uname().nodename}.{dead.pid}.0123abcd"
        for folder in (output, output / ".build", output / ".build/parts")
    ]
    mine = temporary_name(output / ".build/parts/part-000009")
    elsewhere = output / ".build/parts" / f"{TEMPORARY}x.another-host.{dead.pid}.0123abcd"
    for path in (*left, mine, elsewhere):
        path.mkdir()
    run(output, WorkerRank(0, 3))
    assert [path.exists() for path in left] == [False] * 3
    assert mine.exists()
    assert elsewhere.exists()


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_data_set(tmp_path):
    """Killed as by the kernel, without notice; each start takes another number of workers."""
    rng, count = random.Random(20), 60
    command = [sys.executable, "-m", "tests.data.building.toy_job"]
    arguments = ["--count", str(count), "--delay", "0.08"]
    subprocess.run(
        [*command, tmp_path / "undisturbed", "--count", str(count)],
        cwd=ROOT,
        env=environment(),
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=60,
    )
    expected, output, kills, states = hashes(tmp_path / "undisturbed"), tmp_path / "out/shards", 0, set()
    while kills < 20:
        with open(tmp_path / "errors", "w") as errors:
            process = subprocess.Popen(
                [*command, output, *arguments, "--workers", str(rng.choice([1, 2, 2, 3]))],
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        try:
            process.wait(rng.uniform(0.2, 3.0))
        except subprocess.TimeoutExpired:
            # All processes at once, or the first alone: then the next start meets workers that are about to end.
            os.killpg(process.pid, signal.SIGKILL) if rng.random() < 0.7 else process.kill()
            process.wait()
            kills += 1
            states.add(len(list((output / ".build/parts").glob("part-*"))) if output.exists() else 0)
            continue
        # It ended before it was to be killed: the rest of the kills go to a build begun again.
        error = (tmp_path / "errors").read_text()
        assert process.returncode == 0 or "holds finished shards" in error, error
        assert hashes(output) == expected
        shutil.rmtree(output)
    done = subprocess.run(
        [*command, output, *arguments, "--workers", "2"],
        cwd=ROOT,
        env=environment(),
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0 or "holds finished shards" in done.stderr, done.stderr
    assert_whole(output, expected)
    assert len(states) > 4, "the kills came at different stages"


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path):
    command = [
        sys.executable,
        "-m",
        "tests.data.building.toy_job",
        tmp_path / "shards",
        "--workers",
        "2",
        "--delay",
        "0.5",
        "--count",
        "100",
    ]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob(f"shards/.build/parts/{TEMPORARY}*")):
        time.sleep(0.05)
        assert process.poll() is None
    workers = [int(p.name.split(".")[-2]) for p in tmp_path.glob(f"shards/.build/parts/{TEMPORARY}*")]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_the_record_says_how_the_data_set_was_made(tmp_path):
    run(tmp_path / "shards")
    record = json.loads((tmp_path / "shards/build.json").read_text())
    assert record["settings"] == {"version": 1, "size": {"n": 5}}
    assert (record["items"], record["part_items"], record["holdout"]) == (12, 3, 0.3)
