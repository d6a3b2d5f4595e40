"""Count parameters, FLOPs, memory and hours of a recipe: `python launch/plan.py --family fantasy_world`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.trainer.cli import run_main
from stagecoach.trainer.planning.planner import main

if __name__ == "__main__":
    run_main(lambda: main(__doc__))
