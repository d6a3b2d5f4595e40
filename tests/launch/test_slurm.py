"""The batch script passes its arguments on, tells the ranks where to meet, and requeues what was only interrupted."""

import os
import subprocess

import pytest

from stagecoach.trainer.interrupt import EXIT_CODE
from tests.tiny_data import ROOT

SCRIPT = ROOT / "launch" / "slurm" / "stagecoach.sbatch"


@pytest.fixture
def submit(tmp_path):
    """Run the script as sbatch would, with an ``srun`` that leaves with ``code``; exit code, and what was called."""
    calls = tmp_path / "calls"

    def run(code: int) -> tuple[int, list[str]]:
        commands = {
            "srun": f'echo "srun $MASTER_ADDR $MASTER_PORT $*" >>{calls}; exit {code}',
            "scontrol": f'echo "scontrol $*" >>{calls}; [ "$1" = show ] && printf "node7\\nnode8\\n"; true',
        }
        for name, body in commands.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
            (tmp_path / name).chmod(0o755)
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "node[7-8]",
        }
        done = subprocess.run(
            ["bash", str(SCRIPT), "--family", "fantasy_world", "--run", "a b"], env=environment, timeout=20
        )
        return done.returncode, calls.read_text().splitlines()

    return run


def test_a_finished_job_is_not_requeued_and_the_ranks_know_the_first_node(submit):
    code, calls = submit(0)
    assert code == 0
    assert calls == [
        "scontrol show hostnames node[7-8]",
        "srun node7 23456 --wait=120 .venv/bin/python launch/pipeline.py --family fantasy_world --run a b",
    ]


def test_only_an_interrupted_job_is_requeued(submit):
    assert submit(EXIT_CODE)[1][-1] == "scontrol requeue 123456"
    code, calls = submit(1)
    assert code == 1
    assert "requeue" not in calls[-1]


def test_the_signal_goes_to_the_ranks_and_leaves_time_to_save():
    lines = SCRIPT.read_text().splitlines()
    assert "#SBATCH --signal=USR1@300" in lines
    assert "#SBATCH --requeue" in lines
