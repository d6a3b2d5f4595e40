"""Build, check and look at shards: `python launch/build_shards.py build --input RAW --output SHARDS ...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.launch.shards import app
from stagecoach.trainer.cli import run_app

if __name__ == "__main__":
    run_app(app)
