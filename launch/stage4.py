"""Train stage 4: `deepspeed --hostfile hosts launch/stage4.py --family dance_with_music --profile joint`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.launch.commands import run, stage

if __name__ == "__main__":
    run(stage(4), __doc__)
