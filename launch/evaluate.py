"""Measure generated samples: `python launch/evaluate.py GENERATED --truth TRUE --output DIR`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.launch.commands import run
from stagecoach.launch.evaluating import evaluate

if __name__ == "__main__":
    run(evaluate, __doc__)
