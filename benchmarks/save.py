"""How long a checkpoint takes to write, and how long training stands still for it.

    python benchmarks/save.py [--elements 100000000] [--zero 1] [--saves 5] [--folder FOLDER]
    torchrun --nproc_per_node 8 benchmarks/save.py --folder FOLDER

A stack of linear layers is trained for some steps, saved in the step, and saved behind the steps that follow (with an
average: 16 bytes an element). Printed: seconds of each write and stall (of the slowest rank), the least stall as a
share of the least write in the step, the median stall as a share of the median write behind, and how long a step takes
while a checkpoint is written.
"""

import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import nn

from stagecoach.models.weights import AdapterCard
from stagecoach.trainer.checkpointing.save import Saver
from stagecoach.trainer.checkpointing.state import TrainingState
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.cli import json_output, run_main
from stagecoach.trainer.distributed import from_first, start, stop
from stagecoach.trainer.ema import Ema
from stagecoach.trainer.engine import start_engine

WIDTH = 1024
CARD = AdapterCard("none", "", 1, "", 0, "", "", None, "raw", {})


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
    store, ema = CheckpointStore(folder, keep=1), Ema(engine, 0.9)

    def step() -> float:
        began = time.monotonic()
        engine.backward(engine(torch.ones(1, WIDTH, device=world.device)).square().mean())
        engine.step()
        return time.monotonic() - began

    def timed(function: Callable[..., Any], *args: Any) -> float:
        """Seconds that the slowest rank takes."""
        dist.barrier()
        began = time.monotonic()
        function(*args)
        seconds: list[float] = [0.0] * world.size
        dist.all_gather_object(seconds, time.monotonic() - began)
        return max(seconds)

    def state(number: int) -> TrainingState:
        return TrainingState("none", "", 1, number, world.size, options.zero, "", "", 1, 0, "", None)

    steps = [step() for _ in range(4)]
    saver = Saver(store, engine, parameters, ema, world)
    saver.meet()
    inside = [timed(saver.save, state(number), "", CARD) for number in range(1, options.saves + 1)]
    saver.close()
    saver = Saver(store, engine, parameters, ema, world, asynchronous=True)
    prepared = timed(saver.meet)
    stalls, behind, during = [], [], []
    for number in range(options.saves + 1, 2 * options.saves + 1):
        stalls.append(timed(saver.save, state(number), "", CARD))
        while not from_first(saver.writer is not None and saver.writer.has_answered()):
            during.append(step())
        saver.wait()
        behind.append(saver.wrote)
        steps.append(step())
    size = sum(file.stat().st_size for file in store.path(2 * options.saves).rglob("*") if file.is_file())
    saver.close()
    engine.destroy()
    if options.folder is None and world.is_first:
        shutil.rmtree(folder)
    return {
        "zero": options.zero,
        "ranks": world.size,
        "bytes": size,
        "bytes_per_element": round(size / (options.elements // WIDTH**2 * (WIDTH + 1) * WIDTH), 2),
        "preparation_seconds": round(prepared, 3),
        "write_seconds_in_the_step": [round(seconds, 3) for seconds in inside],
        "write_seconds_behind": [round(seconds, 3) for seconds in behind],
        "stall_seconds": [round(seconds, 4) for seconds in stalls],
        "stall_share_of_write_in_the_step": round(min(stalls) / min(inside), 4),
        "stall_share_of_write_behind": round(median(stalls) / median(behind), 4),
        "step_seconds": round(median(steps[1:]), 4),
        "step_seconds_during_a_write": round(median(during), 4) if during else None,
        "longest_step_during_a_write": round(max(during), 4) if during else None,
    }


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=100_000_000)
    parser.add_argument("--zero", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--saves", type=int, default=5, help="checkpoints of each kind")
    parser.add_argument("--folder", help="of the file system to measure (default: that of temporary files)")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="of the launcher")
    options = parser.parse_args()
    with json_output(True) as emit:
        emit(measure(options))
    stop()
    return 0


if __name__ == "__main__":
    run_main(main)
