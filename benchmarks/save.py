"""How long a checkpoint takes to write, and how long training stands still for it.

    python benchmarks/save.py [--elements 100000000] [--zero 1] [--folder FOLDER]
    deepspeed --num_gpus 8 benchmarks/save.py --folder FOLDER

A stack of linear layers is trained for a second, saved in the step, and saved behind the steps that follow (with an
average: 16 bytes an element). Printed: seconds of each, the share of the write that training stands still for, and how
much longer a step takes while a checkpoint is written.
"""

import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from stagecoach.trainer.checkpointing.save import Saver
from stagecoach.trainer.checkpointing.state import TrainingState
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.cli import json_output, run_main
from stagecoach.trainer.distributed import from_first, start, stop
from stagecoach.trainer.ema import Ema
from stagecoach.trainer.engine import start_engine

WIDTH = 1024


def measure(options: Namespace) -> dict[str, Any]:
    world = start()
    folder = Path(options.folder or from_first(tempfile.mkdtemp(prefix="save-benchmark-")))
    network = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(max(1, options.elements // WIDTH**2))))
    parameters = dict(network.named_parameters())
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": world.device.type == "cpu"}},
        "zero_optimization": {"stage": options.zero},
    }
    engine = start_engine(network, [{"params": list(parameters.values())}], config)
    store = CheckpointStore(folder, keep=1)
    saver = Saver(store, engine, parameters, Ema(engine, 0.9), world)

    def step() -> float:
        began = time.monotonic()
        engine.backward(engine(torch.ones(1, WIDTH, device=world.device)).square().mean())
        engine.step()
        return time.monotonic() - began

    def save(number: int) -> float:
        began = time.monotonic()
        state = TrainingState("none", "", 1, number, world.size, options.zero, "", "", 1, 0, "", None)
        saver.save(state, "")
        return time.monotonic() - began

    steps = [step() for _ in range(10)]
    inside = [save(number) for number in (1, 2)]
    saver.asynchronous = True
    # The first one also gets the host memory.
    first = save(3)
    saver.wait()
    began, during = time.monotonic(), []
    stalled = save(4)
    while saver.thread is not None and saver.thread.is_alive():
        during.append(step())
    behind = time.monotonic() - began
    saver.wait()
    size = sum(file.stat().st_size for file in store.path(4).rglob("*") if file.is_file())
    saver.close()
    engine.destroy()
    return {
        "ranks": world.size,
        "bytes": size,
        "bytes_per_element": round(size / sum(p.numel() for p in parameters.values()), 2) if options.zero < 3 else None,
        "write_seconds": round(min(inside), 3),
        "first_stall_seconds": round(first, 3),
        "stall_seconds": round(stalled, 3),
        "stall_share_of_write": round(stalled / min(inside), 4),
        "write_seconds_behind": round(behind, 3),
        "step_seconds": round(sorted(steps[2:])[4], 4),
        "step_seconds_during_a_write": round(sorted(during)[len(during) // 2], 4) if during else None,
        "longest_step_during_a_write": round(max(during), 4) if during else None,
    }


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=100_000_000)
    parser.add_argument("--zero", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--folder", help="of the file system to measure (default: that of temporary files)")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="of the launcher")
    options = parser.parse_args()
    with json_output(True) as emit:
        emit(measure(options))
    stop()
    return 0


if __name__ == "__main__":
    run_main(main)
