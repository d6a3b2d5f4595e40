import json
import os

from stagecoach.trainer.watch.start import OWNERS, _machine, remove_leftovers


def test_what_killed_runs_left_in_memory_goes_and_what_others_use_stays(tmp_path):
    gone, here = 2**22 - 1, os.getpid()
    owners = {
        "killed": {"machine": _machine(), "pids": [gone, gone - 1]},
        "alive": {"machine": _machine(), "pids": [gone, here]},
        "elsewhere": {"machine": "another", "pids": [gone]},
        "damaged": [],
    }
    for name, said in owners.items():
        folder = tmp_path / f"stagecoach-watch-{os.getuid()}-{name}"
        folder.mkdir()
        (folder / OWNERS).write_text(json.dumps(said))
    remove_leftovers(tmp_path)
    left = sorted(folder.name.rpartition("-")[2] for folder in tmp_path.iterdir())
    assert left == ["alive", "damaged", "elsewhere"]
