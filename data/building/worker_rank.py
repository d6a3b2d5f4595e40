"""Which worker this process is: by its launcher's variables, and by number among those that one process starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class WorkerRank:
    """Worker ``rank`` of ``size``; ``local`` is its number on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @classmethod
    def detect(cls, environment: Mapping[str, str] = os.environ) -> WorkerRank:
        """By ``RANK`` and ``WORLD_SIZE`` (torchrun, deepspeed), else by the variables of a Slurm job step (``srun``);
        in a Slurm array each of its tasks has such a set of workers.

        Raises ``ValueError`` for an array whose numbers are not evenly spaced: a task's share would be unknown.
        """
        outer, tasks = _array(environment)
        rank, size, local = 0, 1, 0
        if "RANK" in environment and "WORLD_SIZE" in environment:
            rank, size, local = (int(environment.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        elif "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
            # Slurm sets SLURM_PROCID in a batch script too; only in a step each task has its own.
            names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
            rank, size, local = (int(environment.get(name, 0)) for name in names)
        return cls(outer * size + rank, tasks * size, local)

    def inner(self, worker: int, workers: int) -> WorkerRank:
        """The rank of one of ``workers`` processes that the process of this rank starts."""
        return WorkerRank(self.rank * workers + worker, self.size * workers, self.local * workers + worker)

    def share(self, parts: Sequence[T]) -> list[T]:
        """Part p belongs to worker p mod size."""
        return list(parts[self.rank :: self.size])

    def __str__(self) -> str:
        return f"worker {self.rank} of {self.size}"


def _array(environment: Mapping[str, str]) -> tuple[int, int]:
    """Number of this task in its Slurm array, from 0, and how many tasks there are."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    task, first, last = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX"))
    step = int(environment.get("SLURM_ARRAY_TASK_STEP", 1))
    count = int(environment["SLURM_ARRAY_TASK_COUNT"])
    if (last - first) // step + 1 != count:
        raise ValueError(
            f"a Slurm array of {count} tasks from {first} to {last} found, expected evenly spaced ones, "
            f"from which a task's share follows; give it as --array=0-{count - 1}"
        )
    return (task - first) // step, count


def choose_device(worker_rank: WorkerRank) -> None:
    """Make one GPU of the machine the current one, in turn by local number."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(worker_rank.local % torch.cuda.device_count())
