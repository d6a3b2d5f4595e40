"""Write an adapter or a checkpoint as one file: `python launch/export.py --adapter DIR --output FILE.safetensors`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.launch.commands import export, run

if __name__ == "__main__":
    run(export, __doc__)
