"""Jobs of a real Slurm go on as if nothing had happened: signals, a time limit, a killed rank, a chain of stages.

Two nodes of this machine with one rank each. Every loss is compared with a run that nothing has interrupted.
"""

import os
import sys
from pathlib import Path

import pytest

from tests.cluster.slurm import Cluster, missing
from tests.distributed.cases import losses, toy_recipe
from tests.tiny_data import ROOT
from tests.toy import write_toy_shards

SCRIPT = ROOT / "launch" / "slurm" / "stagecoach.sbatch"
NODES = ("--nodes", 2, "--ntasks-per-node", 1)
STEPS = 6
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="the daemons and namespaces need root"),
    pytest.mark.skipif(
        bool(missing()), reason=f"{', '.join(missing())} not found: apt-get install slurm-wlm munge iproute2"
    ),
]


class Jobs:
    """Submits the toy's two short stages; ``hold`` and ``free`` stop the ranks at a point of ``held.py``."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        (folder / "hold").mkdir()
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.cluster.held "$@"\n')
        python.chmod(0o755)
        # Where jobs are submitted and the script leaves its files.
        (folder / "launch").symlink_to(ROOT / "launch")
        write_toy_shards(folder / "shards")

    def submit(self, name: str, *options: object, stages: str = "1,2", **environment: str) -> str:
        run = self.folder / name
        recipe = self.folder / f"{name}.yaml"
        recipe.write_text(toy_recipe(str(self.folder / "shards"), str(run), steps=STEPS, checkpoint_every=3).dump())
        return self.submit_recipe(
            recipe, "--output", self.folder / f"{name}.log", *options, stages=stages, **environment
        )

    def submit_recipe(self, recipe: Path, *options: object, stages: str = "1", **environment: str) -> str:
        environment = {
            "PYTHONPATH": str(ROOT),
            "HOLD": str(self.folder / "hold"),
            "STAGECOACH_PYTHON": str(self.folder / "python"),
            "STAGECOACH_WAIT": "5",
            "DS_ACCELERATOR": "cpu",
            "GLOO_SOCKET_IFNAME": "sc0",
            **environment,
        }
        words = (*NODES, "--chdir", self.folder, *options, SCRIPT)
        return self.cluster.submit(*words, "--recipe", recipe, "--stages", stages, "--expect-ranks", 2, **environment)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def hold(self, *points: str) -> None:
        for point in points:
            (self.folder / "hold" / point).touch()

    def reached(self, point: str, rank: int = 0) -> int:
        """Wait until a rank is at ``point``; its process on this machine's count is not the one in the file."""
        path = self.folder / "hold" / f"{point}.{rank}"
        self.cluster.until(path.exists, f"rank {rank} to reach {point}")
        return int(path.read_text())

    def free(self, point: str) -> None:
        for path in (self.folder / "hold").glob(f"{point}*"):
            path.unlink()

    def signal(self, job: str, name: str = "USR1") -> None:
        self.cluster.ask("scancel", f"--signal={name}", job)

    def all_losses(self, name: str) -> list[list[float]]:
        return [losses(self.folder / name, stage) for stage in (1, 2)]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    cluster = Cluster(folder / "cluster", folder)
    yield Jobs(cluster, folder)
    cluster.close()


@pytest.fixture(scope="module")
def reference(jobs):
    """Losses of a job that nothing interrupts, one stage a job: the second waits for the first."""
    first = jobs.submit("reference", stages="1")
    second = jobs.submit("reference", "--dependency", f"afterok:{first}", stages="2")
    assert jobs.cluster.facts(second)["JobState"] == "PENDING"
    for job in (first, second):
        facts = jobs.cluster.wait(job)
        assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "0"), jobs.log(
            "reference"
        )
    found = jobs.all_losses("reference")
    assert [len(values) for values in found] == [STEPS, STEPS]
    return found


def test_a_chain_of_stages_trains_both(reference):
    assert reference[0] != reference[1]


@pytest.fixture(scope="module")
def limited(jobs, reference):
    """A job of stage 1 that needs longer than until the signal, 60 to 90 s after its start, while other tests go on."""
    options = ("--time", 2, "--signal", "USR1@30")
    return jobs.submit("limited", *options, stages="1", HOLD=str(jobs.folder), STEP_SECONDS="14")


def test_signals_at_any_moment_and_a_killed_rank_cost_no_digit(jobs, reference, limited):
    jobs.hold("build", "step2", "save3", "step5")
    job = jobs.submit("struck")

    jobs.reached("build")
    jobs.signal(job)  # before the first step
    said = "requeued: stopped on request at the beginning"
    jobs.cluster.until(lambda: said in jobs.log("struck"), "the first requeue")
    jobs.free("build")

    jobs.reached("step2")
    jobs.signal(job)  # in training
    jobs.free("step2")
    jobs.cluster.until(lambda: "goes on from stage 1, step 2" in jobs.log("struck"), "the second requeue")

    jobs.reached("save3")
    jobs.signal(job)  # in a save
    jobs.free("save3")
    jobs.cluster.until(lambda: "goes on from stage 1, step 4" in jobs.log("struck"), "the third requeue")

    inside = jobs.reached("step5", rank=1)
    jobs.reached("step5")
    jobs.cluster.ask("kill", "-KILL", inside)  # as a full memory would
    jobs.free("step5")
    facts = jobs.cluster.wait(job)
    log = jobs.log("struck")
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", "4"), log
    assert jobs.all_losses("struck") == reference
    assert not (jobs.folder / f"stagecoach_{job}.state").exists()


def test_tasks_of_an_array_have_their_own_recipe_folder_and_end(jobs, reference):
    """The number of the last task is that of the array, too, by which Slurm means all that are left."""
    number, folder = "$SLURM_ARRAY_TASK_ID", jobs.folder
    for task, seed in ((1, 5), (2, 5), (3, 0)):
        values = toy_recipe(str(folder / "shards"), str(folder / "array" / "TASK"), steps=STEPS, seed=seed)
        (folder / f"task_{task}.yaml").write_text(values.dump().replace("TASK", number))
        (folder / f"hold_{task}").mkdir()
        (folder / f"hold_{task}" / "step2").touch()
    options = ("--array", "1-3", "--output", folder / "array_%A_%a.log")
    array = jobs.submit_recipe(folder / f"task_{number}.yaml", *options, HOLD=str(folder / f"hold_{number}"))
    jobs.cluster.ask("scancel", f"{array}_1")
    for task in (2, 3):
        jobs.cluster.until((folder / f"hold_{task}" / "step2.0").exists, f"task {task} to reach step 2")
        assert (folder / f"stagecoach_{array}_{task}.state").is_dir()
    jobs.signal(f"{array}_3")
    (folder / "hold_3" / "step2").unlink()
    log = folder / f"array_{array}_3.log"
    jobs.cluster.until(lambda: "goes on from stage 1, step 2" in log.read_text(), "task 3 to be requeued")
    (folder / "hold_2" / "step2").unlink()
    for task, restarts in ((2, "0"), (3, "1")):
        facts = jobs.cluster.wait(f"{array}_{task}")
        said = (folder / f"array_{array}_{task}.log").read_text()
        assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("COMPLETED", "0:0", restarts), said
        assert not (folder / f"stagecoach_{array}_{task}.state").exists()
    assert jobs.cluster.facts(f"{array}_3")["JobId"] == array
    assert losses(folder / "array" / "3", 1) == reference[0]
    other = losses(folder / "array" / "2", 1)
    assert len(other) == STEPS
    assert other != reference[0]


def test_a_time_limit_costs_no_digit(jobs, reference, limited):
    facts = jobs.cluster.wait(limited, 240)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), jobs.log("limited")
    assert int(facts["Restarts"]) >= 1
    assert "stopped by SIGUSR1 at step" in jobs.log("limited")
    assert losses(jobs.folder / "limited", 1) == reference[0]


def test_a_job_that_is_cancelled_does_not_come_back(jobs):
    jobs.hold("step1")
    job = jobs.submit("cancelled", stages="1")
    jobs.reached("step1")
    jobs.cluster.ask("scancel", job)
    jobs.free("step1")
    assert jobs.cluster.wait(job)["JobState"] == "CANCELLED"
    assert "requeued" not in jobs.log("cancelled")
