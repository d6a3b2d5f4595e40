import errno
import json
import os
import subprocess

import pytest

from stagecoach.trainer.watch.judge import Bounds
from stagecoach.trainer.watch.node import RankPlace, WatchConfig
from stagecoach.trainer.watch.record import Page
from stagecoach.trainer.watch.start import MOST_STARTS, OWNERS, _machine, _WatcherProcess, remove_leftovers


def test_what_killed_runs_left_in_memory_goes_and_what_others_use_stays(tmp_path):
    gone, here = 2**22 - 1, os.getpid()
    owners = {
        "killed": {"machine": _machine(), "pids": [gone, gone - 1]},
        "alive": {"machine": _machine(), "pids": [gone, here]},
        "elsewhere": {"machine": "another", "pids": [gone]},
        "damaged": [],
        "number": {"machine": _machine(), "pids": [-1, gone]},
        "pipe": None,
    }
    for name, said in owners.items():
        folder = tmp_path / f"stagecoach-watch-{os.getuid()}-{name}"
        folder.mkdir()
        if said is None:
            os.mkfifo(folder / OWNERS)
        else:
            (folder / OWNERS).write_text(json.dumps(said))
    remove_leftovers(tmp_path)
    left = sorted(folder.name.rpartition("-")[2] for folder in tmp_path.iterdir())
    assert left == ["alive", "damaged", "elsewhere", "number", "pipe"]


def test_a_watcher_that_ends_is_started_again_a_few_times_and_its_end_is_said(tmp_path, caplog, capfd):
    place = (RankPlace(0, "host0", 0, os.getpid()),)  # whose page is not there
    watcher = _WatcherProcess(WatchConfig("t", str(tmp_path), str(tmp_path), 0, place, Bounds(), "stop", 75))
    for _ in range(MOST_STARTS):
        watcher.keep()
        assert watcher.process.wait(30) == 1
    for _ in range(3):
        watcher.keep()
    assert caplog.text.count("has ended with exit code 1; it is started again") == MOST_STARTS - 1
    assert caplog.text.count("has ended with exit code 1; this node is not watched any more") == 1
    assert capfd.readouterr().err.count("FileNotFoundError") == MOST_STARTS


def test_a_watcher_that_comes_up_when_its_ranks_are_over_has_nothing_to_say(tmp_path, capfd):
    over = subprocess.Popen(["true"])
    over.wait()
    place = (RankPlace(0, "host0", 0, over.pid),)
    watcher = _WatcherProcess(WatchConfig("t", str(tmp_path), str(tmp_path), 0, place, Bounds(), "stop", 75))
    watcher.keep()
    assert watcher.process.wait(30) == 0
    assert capfd.readouterr().err == ""


def test_where_the_nodes_memory_is_full_a_page_is_refused_and_kills_no_rank(tmp_path):
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", tmp_path]).returncode:
        pytest.skip("only a user who may mount makes a small file system")
    try:
        (tmp_path / "filler").write_bytes(bytes(2**14))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            Page(tmp_path / "rank_0", create=True)
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
