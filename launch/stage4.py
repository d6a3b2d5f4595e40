"""Train stage 4: `deepspeed --hostfile hosts launch/stage4.py --family dance_with_music --profile joint`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.trainer.cli import run_main
from stagecoach.trainer.run import main

if __name__ == "__main__":
    run_main(lambda: main(__doc__, stages=[4]))
