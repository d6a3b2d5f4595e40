"""A rank of a real run of the toy family: ``python -m tests.distributed.watched RECIPE.json SLOW_RANK``."""

import json
import sys
import time
from pathlib import Path

from stagecoach.models import FAMILIES
from stagecoach.trainer.cli import run_main
from stagecoach.trainer.stage import StageLoop
from tests.distributed.cases import train

SLOW_SECONDS = 0.15


def slow_down() -> None:
    step = StageLoop.micro_step

    def slow(loop: StageLoop, batch: dict) -> None:
        time.sleep(SLOW_SECONDS)
        step(loop, batch)

    StageLoop.micro_step = slow


def main() -> None:
    FAMILIES["toy"] = "tests.toy:ToyFamily"
    file, slow_rank = sys.argv[-2:]  # the launcher of DeepSpeed puts a flag before them
    recipe = json.loads(Path(file).read_text())

    def run() -> None:
        from stagecoach.trainer.reporting.logs import process_rank

        if str(process_rank()) == slow_rank:
            slow_down()
        recipe["stages"] = {int(index): stage for index, stage in recipe["stages"].items()}
        train(recipe, [1])

    run_main(run)


if __name__ == "__main__":
    main()
