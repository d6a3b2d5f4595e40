"""Check a run before any GPU is busy: `python launch/verify.py --family fantasy_world --data SHARDS`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.launch.commands import run, verify

if __name__ == "__main__":
    run(verify, __doc__)
