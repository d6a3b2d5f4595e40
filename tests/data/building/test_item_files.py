"""A build that is started again makes the parts again whose raw files have changed since, and no others."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stagecoach.data.building.partition import divide
from stagecoach.data.building.worker_rank import WorkerRank
from stagecoach.data.files import DamagedError
from tests.data.building.toy_job import OPTIONS, ROOT, assert_whole, environment, hashes, job, run


def raw_numbers(folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"item{number:03d}.txt").write_text(str(number))
    return folder


def test_parts_of_files_that_have_changed_are_made_again(tmp_path, caplog):
    raw, output = raw_numbers(tmp_path / "raw"), tmp_path / "shards"
    run(output, WorkerRank(0, 2), job(raw=raw))
    parts = divide(job(), OPTIONS).parts
    touched, replaced = parts[0].items[-1].key, parts[2].items[0].key
    os.utime(raw / f"{touched}.txt", ns=(0, 0))
    (raw / f"{replaced}.txt").write_text("77")
    run(output, made=job(raw=raw))
    there = len(parts[0::2])
    assert caplog.messages == [
        f"worker 0 of 1: 2 of {there} parts are made again, as files that they were made of have changed since: "
        f"{raw / touched}.txt of {touched} first"
    ]
    run(tmp_path / "fresh", made=job(raw=raw))
    assert_whole(output, hashes(tmp_path / "fresh"))


def test_what_moved_with_its_times_is_not_made_again(tmp_path, caplog):
    raw, output = raw_numbers(tmp_path / "raw"), tmp_path / "shards"
    run(output, WorkerRank(0, 2), job(raw=raw))
    raw = raw.rename(tmp_path / "moved")
    run(output, WorkerRank(0, 2), made := job(raw=raw))
    assert made.starts == 0
    assert caplog.messages == []


def test_a_file_that_changes_after_its_worker_looked_is_found_at_the_end(tmp_path):
    raw, output = raw_numbers(tmp_path / "raw"), tmp_path / "shards"
    run(output, WorkerRank(0, 2), job(raw=raw))
    key = divide(job(), OPTIONS).parts[0].items[0].key
    (raw / f"{key}.txt").write_text("77")
    with pytest.raises(DamagedError, match=rf"{key}\.txt of {key} has changed .*; start the same command again"):
        run(output, WorkerRank(1, 2), job(raw=raw))
    assert run(output, WorkerRank(0, 2), job(raw=raw)).finished
    run(tmp_path / "fresh", made=job(raw=raw))
    assert_whole(output, hashes(tmp_path / "fresh"))


def test_killed_and_started_again_with_an_item_exported_again_it_holds_the_new_one(tmp_path):
    """Killed as by the kernel when three parts were there; the second start has two worker processes."""
    raw, output = raw_numbers(tmp_path / "raw", 30), tmp_path / "out/shards"
    command = [sys.executable, "-m", "tests.data.building.toy_job", output, "--raw", raw, "--count", "30"]
    process = subprocess.Popen([*command, "--delay", "0.2"], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    while len(list(output.glob(".build/parts/part-*"))) < 3:
        time.sleep(0.02)
        assert process.poll() is None
    process.kill()
    process.wait()
    changed = divide(job(count=30), OPTIONS).parts[1].items[1].key
    (raw / f"{changed}.txt").write_text("1234")
    done = subprocess.run(
        [*command, "--workers", "2"], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"parts are made again, as files that they were made of have changed since: {raw / changed}" in done.stderr
    run(tmp_path / "fresh", made=job(count=30, raw=raw))
    assert_whole(output, hashes(tmp_path / "fresh"))
