"""Two real processes that stay up for all cases of a test file: gloo, DeepSpeed, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from multiprocessing.connection import Connection
from typing import Any


class Pair:
    """``run(function, *args)`` calls an importable function on every rank and returns the results in rank order."""

    def __init__(self, size: int = 2, timeout: float = 180.0) -> None:
        self.size, self.timeout = size, timeout
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(size):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, size, port), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)

    def run(self, function, *args: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((function, args))
        results, failures = [], []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(self.timeout):
                self.close()
                raise TimeoutError(f"rank {rank} did not answer within {self.timeout} s in {function.__name__}")
            try:
                ok, value = pipe.recv()
            except EOFError:
                self.close()
                raise RuntimeError(f"rank {rank} died in {function.__name__}") from None
            (results if ok else failures).append(value)
        if failures:
            raise AssertionError("\n".join(failures))
        return results

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()


def _serve(pipe: Connection, rank: int, size: int, port: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_SIZE=str(size),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1",
                      CROSS_RANK="0", CROSS_SIZE="1")
    import torch

    torch.set_num_threads(1)
    from models import FAMILIES

    FAMILIES["toy"] = "tests.toy:ToyFamily"
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
