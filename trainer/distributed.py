"""The process group: joining it, and what its ranks say to each other between steps."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    # DeepSpeed chooses its accelerator when it is first imported.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from stagecoach.trainer.environment import meet_first_rank, resolve_environment
from stagecoach.trainer.operators import guard_builds
from stagecoach.trainer.settings import FirstRankError
from stagecoach.trainer.waiting import waiting
from stagecoach.trainer.watch.collectives import record_collectives


@dataclass(frozen=True)
class World:
    """This process among its peers. ``device`` is where it computes."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def start(timeout_minutes: float = 30.0) -> World:
    """Join the process group (once per process) and pick this rank's device."""
    resolve_environment()
    local_rank = int(os.environ["LOCAL_RANK"])
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        accelerator.set_device(local_rank)
    if not dist.is_initialized():
        record_collectives()
        guard_builds()
        where = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')}"
        with waiting(f"the {os.environ['WORLD_SIZE']} ranks to meet at {where}"):
            meet_first_rank()
            deepspeed.init_distributed(
                dist_backend=accelerator.communication_backend_name(),
                verbose=False,
                timeout=timedelta(minutes=timeout_minutes),
            )
        if accelerator.device_name() == "cpu":
            _unname_shared_memory()
    return World(dist.get_rank(), dist.get_world_size(), local_rank, torch.device(accelerator.current_device_name()))


def _unname_shared_memory() -> None:
    """Take the name from the 66 MiB of shared memory through which DeepSpeed reduces on a CPU, once all ranks have
    mapped it. DeepSpeed never does: each run would leave its own behind, in memory, until the machine is full."""
    dist.barrier()
    name = "_".join(
        (
            "deepspeed_allreduce_buffer",
            str(os.getuid()),
            os.environ["MASTER_ADDR"],
            os.environ["MASTER_PORT"],
            str(dist.get_rank()),
        )
    )
    Path("/dev/shm", name).unlink(missing_ok=True)


def stop() -> None:
    """Leave the process group; a script that does not may fail after its last line."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def from_first(value: Any) -> Any:
    """``value`` of rank 0 on every rank (any picklable object)."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_first(world: World, function, *args: Any) -> Any:
    """Run ``function(*args)`` on rank 0 alone and return its result on all ranks; its failure is raised on all."""
    result, failure = None, None
    if world.is_first:
        try:
            result = function(*args)
        except Exception as error:
            failure = error
    message = None if failure is None else f"{type(failure).__name__}: {failure}"
    result, message = from_first((result, message))
    if failure is not None:
        raise failure
    if message is not None:
        raise FirstRankError(message)
    return result


def together(world: World, failure: Exception | None) -> None:
    """Raise on all ranks if one failed: its own error on the first that did, a ``FirstRankError`` elsewhere."""
    messages: list[Any] = [None] * world.size
    dist.all_gather_object(messages, None if failure is None else str(failure))
    for rank, message in enumerate(messages):
        if message is not None:
            if rank == world.rank and failure is not None:
                raise failure
            raise FirstRankError(f"rank {rank}: {message}")


def attempt(function, *args: Any, **kwargs: Any) -> Exception | None:
    """Call a function that one rank or each runs for itself; its failure, for ``together``."""
    try:
        function(*args, **kwargs)
    except Exception as error:  # of any kind: the other ranks must not wait for this one
        return error
    return None


class Deferred:
    """Calls the methods of ``target``, which one rank alone has work for, and keeps their first ``failure`` until the
    ranks agree on it: raised at once it would leave the others waiting in a collective."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        method = getattr(self.target, name)

        def call(*args: Any, **kwargs: Any) -> None:
            self.failure = self.failure or attempt(method, *args, **kwargs)

        return call


def totals(world: World, *values: float) -> list[float]:
    """Each value summed over the ranks, in one message."""
    return sum_over_ranks(torch.tensor(values, dtype=torch.float64, device=world.device)).tolist()


def sum_over_ranks(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values
