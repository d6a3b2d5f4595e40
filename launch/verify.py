"""Check a run before any GPU is busy: `python launch/verify.py --family fantasy_world --data SHARDS`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.trainer.cli import run_main
from stagecoach.trainer.planning.preflight import main

if __name__ == "__main__":
    run_main(lambda: main(__doc__))
