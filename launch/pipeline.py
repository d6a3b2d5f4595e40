"""Train all stages of a family in sequence: `deepspeed --hostfile hosts launch/pipeline.py --family fantasy_world`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.launch.commands import run, train

if __name__ == "__main__":
    run(train, __doc__)
