"""Train all stages of a family in sequence: `deepspeed --hostfile hosts launch/pipeline.py --family fantasy_world`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.trainer.cli import run_main
from stagecoach.trainer.run import main

if __name__ == "__main__":
    run_main(lambda: main(__doc__, stages=None))
