"""Which share a process takes follows from its launcher's variables."""

import pytest

from stagecoach.data.building.build import build
from stagecoach.data.building.options import BuildOptions
from stagecoach.data.building.worker_rank import WorkerRank, choose_device
from tests.data.building.toy_job import ToyJob

ARRAY = {
    "SLURM_ARRAY_TASK_ID": "14",
    "SLURM_ARRAY_TASK_MIN": "10",
    "SLURM_ARRAY_TASK_MAX": "18",
    "SLURM_ARRAY_TASK_STEP": "2",
    "SLURM_ARRAY_TASK_COUNT": "5",
}
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
RANK = {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, WorkerRank(0, 1, 0)),
        (RANK, WorkerRank(5, 6, 2)),
        (STEP, WorkerRank(3, 8, 1)),
        ({**STEP, **RANK}, WorkerRank(5, 6, 2)),
        ({name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"}, WorkerRank(0, 1, 0)),
        (ARRAY, WorkerRank(2, 5, 0)),
        ({**ARRAY, **STEP}, WorkerRank(2 * 8 + 3, 40, 1)),
        ({**ARRAY, **RANK}, WorkerRank(2 * 6 + 5, 30, 2)),
    ],
)
def test_the_worker_rank_follows_from_the_launcher(environment, expected):
    assert WorkerRank.detect(environment) == expected


def test_an_array_with_gaps_is_refused_with_one_that_has_none():
    with pytest.raises(ValueError, match=r"array of 3 tasks from 10 to 18 found.*--array=0-2"):
        WorkerRank.detect({**ARRAY, "SLURM_ARRAY_TASK_COUNT": "3"})


def test_all_parts_are_shared_out_once_also_among_processes_that_processes_start():
    parts = list(range(23))
    worker_ranks = [WorkerRank(rank, 3, 0).inner(worker, 2) for rank in range(3) for worker in range(2)]
    assert sorted(part for worker_rank in worker_ranks for part in worker_rank.share(parts)) == parts
    assert {worker_rank.size for worker_rank in worker_ranks} == {6}
    assert [WorkerRank(0, 1, 0).inner(worker, 4).local for worker in range(4)] == [0, 1, 2, 3]
    assert str(worker_ranks[3]) == "worker 3 of 6"


def test_processes_of_a_machine_take_its_gpus_in_turn(monkeypatch):
    taken = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    for local in range(6):
        choose_device(WorkerRank(20 + local, 40, local))
    assert taken == [0, 1, 2, 3, 0, 1]


def test_the_gpu_is_chosen_before_the_encoders_are_loaded(tmp_path, monkeypatch):
    calls = []

    class DeviceJob(ToyJob):
        on_device = True

        def start(self) -> None:
            calls.append("start")
            super().start()

    monkeypatch.setattr("stagecoach.data.building.worker.choose_device", calls.append)
    build(DeviceJob(), tmp_path / "shards", BuildOptions(), worker_rank=WorkerRank(0, 1, 3))
    assert calls == [WorkerRank(0, 1, 3), "start"]
