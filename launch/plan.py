"""Count parameters, FLOPs, memory and hours of a recipe: `python launch/plan.py --family fantasy_world`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.launch.commands import plan, run

if __name__ == "__main__":
    run(plan, __doc__)
