"""A rank without an engine: it beats as the loop does, and waits for the others through files, as a collective does."""

import os
import sys
import time
from pathlib import Path

from stagecoach.trainer.watch.heartbeat import Heartbeat, phase


def wait_for_the_others(folder: Path, step: int, size: int) -> None:
    while len(list(folder.glob(f"{step}_*"))) < size:
        time.sleep(0.005)


def main() -> None:
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    steps, stuck = int(sys.argv[4]), sys.argv[5]
    meet = folder / "meet"
    heart = Heartbeat(folder, rank)
    heart.start()
    (folder / f"ready_{rank}").touch()
    heart.beat(stage=1, phase="data")
    for step in range(steps):
        if stuck == f"{rank}@{step}":
            with phase("save"):
                time.sleep(0.8)  # longer than the bound of a step
            (folder / "stuck").touch()
            time.sleep(60)
        heart.beat(phase="step")
        (meet / f"{step}_{rank}").touch()
        wait_for_the_others(meet, step, size)
        time.sleep(0.02)
        heart.step_done(step + 1, 0.02)
        heart.beat(phase="data")
    heart.end(0)
    os._exit(0)


if __name__ == "__main__":
    main()
