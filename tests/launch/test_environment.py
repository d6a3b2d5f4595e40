"""One way to find rank and world size, whoever started the processes."""

import pytest

from stagecoach.trainer.environment import resolve_environment

OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}


@pytest.fixture
def environment(monkeypatch):
    """Resolve an environment that holds ``given`` and none of the launchers' other variables."""
    variables = {}

    def resolve(**given):
        variables.clear()
        variables.update(given)
        monkeypatch.setattr("os.environ", variables)
        resolve_environment()
        return [variables[name] for name in OURS]

    return resolve


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_what_a_launcher_has_set_stays(environment, launcher):
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29501"}
    own = {"CROSS_RANK": "1", "LOCAL_SIZE": "2"} if launcher == "deepspeed" else {"TORCHELASTIC_RUN_ID": "none"}
    assert environment(**given, **own) == ["3", "4", "1", "node0", "29501"]
    # Also inside an allocation, whose own variables describe the launcher's single task.
    assert environment(**given, **own, **SLURM, SLURM_STEP_ID="0") == ["3", "4", "1", "node0", "29501"]


def test_a_task_of_srun_takes_its_place_from_slurm(environment):
    assert environment(**SLURM, SLURM_STEP_ID="0", MASTER_ADDR="node0") == ["9", "16", "1", "node0", "29500"]
    assert environment(**SLURM, SLURM_STEP_ID="0", MASTER_ADDR="node0", MASTER_PORT="4")[-1] == "4"


def test_several_tasks_without_a_master_address_are_refused_with_the_line_to_add(environment):
    with pytest.raises(ValueError, match=r"MASTER_ADDR is not set.*scontrol show hostnames"):
        environment(**SLURM, SLURM_STEP_ID="0")


def test_a_batch_shell_is_no_task(environment):
    # sbatch and salloc set SLURM_PROCID in the shell of the first node as well.
    rank, size, local, address, port = environment(**SLURM | {"SLURM_PROCID": "0"})
    assert (rank, size, local, address) == ("0", "1", "0", "127.0.0.1")
    assert int(port) > 0


def test_a_plain_process_is_alone_and_takes_a_free_port(environment):
    first, second = environment(), environment()
    assert first[:4] == ["0", "1", "0", "127.0.0.1"]
    assert first[4] != second[4]
