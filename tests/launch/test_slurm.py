"""The batch script passes its arguments on, tells the ranks where to meet, and requeues what may go on."""

import os
import signal
import subprocess

import pytest

from stagecoach.trainer.interrupt import EXIT_CODE, PEER_LOST
from tests.tiny_data import ROOT

SCRIPT = ROOT / "launch" / "slurm" / "stagecoach.sbatch"


class Submitted:
    """Runs the script as sbatch would, in a folder of its own, with an ``srun`` that leaves with a code of choice."""

    def __init__(self, folder):
        self.folder, self.calls, self.state = folder, folder / "calls", folder / "stagecoach_123456.state"

    def __call__(self, code: int, progress: str = "", error: str = "", gres: str = "(null)", **environment: str):
        """Exit code, what was called, and what the script said last; the ranks leave ``progress`` and ``error``."""
        self.calls.write_text("")
        leave = "".join(
            f'echo "{text}" >"$STAGECOACH_STATE/{name}"; '
            for name, text in (("progress", progress), ("error", error))
            if text
        )
        commands = {
            "srun": f'echo "srun $MASTER_ADDR $MASTER_PORT $* cpus ${{SRUN_CPUS_PER_TASK:-unset}}" >>{self.calls}; '
            f"{leave}exit {code}",
            "scontrol": f'echo "scontrol $*" >>{self.calls}; [ "$1" = show ] && printf "node7\\nnode8\\n"; true',
            "sinfo": f'echo "{gres}"',
        }
        for name, body in commands.items():
            (self.folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (self.folder / name).chmod(0o755)
        environment |= {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "node[7-8]",
        }
        done = subprocess.run(
            ["bash", str(SCRIPT), "--family", "fantasy_world", "--run", "a b"],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.returncode, self.calls.read_text().splitlines(), done.stdout.splitlines()[-1]


@pytest.fixture
def submit(tmp_path):
    return Submitted(tmp_path)


def test_a_finished_job_is_not_requeued_and_the_ranks_know_the_first_node(submit):
    code, calls, said = submit(0)
    assert code == 0
    assert calls == [
        "scontrol show hostnames node[7-8]",
        "srun node7 23456 --wait=120 .venv/bin/python launch/pipeline.py --family fantasy_world --run a b cpus unset",
    ]
    assert said.endswith("finished")
    assert not submit.state.exists()


@pytest.mark.parametrize("code", [EXIT_CODE, 128 + signal.SIGUSR1, 128 + signal.SIGTERM])
def test_a_job_that_was_asked_to_stop_is_requeued_while_checkpoints_come_and_then_three_times(submit, code):
    """A job that never gets to its first checkpoint within its time limit would come back for ever."""
    for step in range(5):
        found, calls, said = submit(code, progress=f"stage 1, step {step}")
        assert (found, calls[-1]) == (code, "scontrol requeue 123456")
        assert said.endswith(f"requeued: stopped on request, and goes on from stage 1, step {step}")
    for restart in (1, 2, 3):
        _, calls, said = submit(code)
        assert calls[-1] == "scontrol requeue 123456"
        assert said.endswith(f"stopped on request at stage 1, step 4, restart {restart} of 3 without a new checkpoint")
    _, calls, said = submit(code)
    assert calls[-1] != "scontrol requeue 123456"
    assert said.endswith("not requeued: stopped on request 4 times at stage 1, step 4")


def test_an_error_that_a_rank_named_is_not_repeated_where_others_were_asked_to_stop(submit):
    _, calls, said = submit(EXIT_CODE, progress="stage 1, step 40", error="rank 3 on node8: ValueError: no")
    assert calls[-1] != "scontrol requeue 123456"
    assert said.endswith("not requeued, exit code 75: rank 3 on node8: ValueError: no")


def test_a_step_gets_the_cpus_that_were_asked_for_and_no_number_where_none_was(submit):
    assert submit(0, SLURM_CPUS_PER_TASK="12")[1][-1].endswith("cpus 12")
    assert submit(0)[1][-1].endswith("cpus unset")


def test_an_error_of_a_rank_is_not_repeated_when_others_were_killed(submit):
    code, calls, said = submit(137, progress="stage 1, step 40", error="rank 3 on node8: ValueError: no")
    assert code == 137
    assert "requeue" not in calls[-1]
    assert said.endswith("not requeued, exit code 137: rank 3 on node8: ValueError: no")
    code, calls, said = submit(1)
    assert (code, "requeue" in calls[-1]) == (1, False)


def test_a_job_that_breaks_off_is_requeued_while_checkpoints_come_and_then_three_times(submit):
    for step in (10, 20):
        _, calls, said = submit(137, progress=f"stage 1, step {step}")
        assert calls[-1] == "scontrol requeue 123456"
        assert said.endswith(f"broke off (exit code 137), and goes on from stage 1, step {step}")
    for restart in (1, 2, 3):
        _, calls, said = submit(PEER_LOST)
        assert calls[-1] == "scontrol requeue 123456"
        assert said.endswith(f"at stage 1, step 20, restart {restart} of 3 without a new checkpoint")
    _, calls, said = submit(137)
    assert "requeue" not in calls[-1]
    assert said.endswith("not requeued: broke off (exit code 137) 4 times at stage 1, step 20")
    assert not submit.state.exists()
    assert submit(137, STAGECOACH_RESTARTS="0")[2].endswith("broke off (exit code 137) 1 times at the beginning")


def test_a_cluster_without_gres_takes_the_script_and_one_with_gpus_wants_some_asked_for(submit):
    assert "gpus" not in "".join(line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH"))
    code, calls, said = submit(0, gres="gpu:h20:8")
    assert (code, calls) == (1, [])
    assert "expected sbatch --gpus-per-node" in said
    assert submit(0, gres="gpu:h20:8", SLURM_GPUS_ON_NODE="8")[0] == 0


def test_the_signal_goes_to_the_ranks_and_leaves_time_to_save():
    lines = SCRIPT.read_text().splitlines()
    assert "#SBATCH --signal=USR1@300" in lines
    assert "#SBATCH --requeue" in lines
