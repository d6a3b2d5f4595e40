"""Train stage 2: `deepspeed --hostfile hosts launch/stage2.py --family fantasy_world`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.trainer.interrupt import leave_on_signals

if __name__ == "__main__":
    leave_on_signals()
    from stagecoach.launch.commands import run, stage

    run(stage(2), __doc__)
