"""Two real processes that stay up for all cases of a test file: gloo, DeepSpeed, one thread each."""

import multiprocessing
import os
import socket
import time
import traceback
from multiprocessing.connection import Connection, wait
from typing import Any


class Pair:
    """``run(function, *args)`` calls an importable function on every rank and returns the results in rank order."""

    def __init__(self, size: int = 2, timeout: float = 180.0) -> None:
        self.size, self.timeout = size, timeout
        self.start()

    def start(self) -> None:
        port = free_port()
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(self.size):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self.size, port), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)

    def restart(self) -> None:
        """A new pair for the next case, after one that left a rank behind."""
        for process in self.processes:
            process.kill()
        self.close()
        self.start()

    def run(self, function, *args: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((function, args))
        answers: dict[int, tuple[bool, Any]] = {}
        died = False
        end = time.monotonic() + self.timeout
        while len(answers) < self.size:
            waiting = {self.pipes[rank]: rank for rank in range(self.size) if rank not in answers}
            ready = wait(list(waiting), max(0.0, end - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                rank = waiting[pipe]
                try:
                    answers[rank] = pipe.recv()
                except (EOFError, ConnectionError):
                    died = True
                    answers[rank] = (False, f"rank {rank} died in {function.__name__}")
                if not answers[rank][0]:
                    # A rank that fails alone leaves the other in a collective; what it says must not be lost.
                    end = min(end, time.monotonic() + 30.0)
        failures = [value for _, (ok, value) in sorted(answers.items()) if not ok]
        late = [rank for rank in range(self.size) if rank not in answers]
        if late or died:
            self.restart()
        if late:
            failures.append(f"rank {late} did not answer in {function.__name__}")
        if failures:
            raise (RuntimeError if died else AssertionError)("\n".join(failures))
        return [answers[rank][1] for rank in range(self.size)]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def become_rank(rank: int, size: int, port: int) -> None:
    """Make this process one of ``size`` on this machine, of one thread, that knows the toy family."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        LOCAL_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
        OMP_NUM_THREADS="1",
        CROSS_RANK="0",
        CROSS_SIZE="1",
    )
    import torch

    torch.set_num_threads(1)
    from stagecoach.models import FAMILIES

    FAMILIES["toy"] = "tests.toy:ToyFamily"


def _serve(pipe: Connection, rank: int, size: int, port: int) -> None:
    become_rank(rank, size, port)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            break
        try:
            answer = (True, function(*args))
        except BaseException:
            answer = (False, f"rank {rank}:\n{traceback.format_exc()}")
        pipe.send(answer)
