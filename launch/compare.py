"""Compare weights on one page: `python launch/compare.py --run DIR --requests FILE --output DIR`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stagecoach.trainer.interrupt import leave_on_signals

if __name__ == "__main__":
    leave_on_signals()
    from stagecoach.launch.commands import run
    from stagecoach.launch.generating import compare

    run(compare, __doc__)
