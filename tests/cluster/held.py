"""Runs a script with the toy family known, and stops it at points that a test names.

    python -m tests.cluster.held SCRIPT [ARGUMENT ...]

At a point (``build``, ``step3``, ``save3``) a rank that finds a file of that name in $HOLD (variables in it are filled
in) writes ``NAME.rank`` next to it and stays until the file is gone.
"""

import os
import runpy
import sys
import time
from pathlib import Path


def hold(point: str) -> None:
    folder = Path(os.path.expandvars(os.environ["HOLD"]))
    if (folder / point).exists():
        (folder / f"{point}.{os.environ.get('RANK')}").write_text(str(os.getpid()))
        while (folder / point).exists():
            time.sleep(0.05)


def prepare() -> None:
    """Put the points into the trainer once it is there."""
    from stagecoach.models import FAMILIES
    from stagecoach.trainer import stage
    from stagecoach.trainer.checkpointing import write
    from tests.toy import ToyFamily

    FAMILIES["toy"] = "tests.toy:ToyFamily"
    build, after, commit = ToyFamily.build, stage.StageLoop._after_step, write._commit

    def held_build(self, *args):
        hold("build")
        return build(self, *args)

    def held_step(self):
        after(self)
        hold(f"step{self.step}")
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))

    def held_commit(store, temporary, final):
        hold(final.name.replace("checkpoint_", "save"))
        commit(store, temporary, final)

    ToyFamily.build, stage.StageLoop._after_step, write._commit = held_build, held_step, held_commit


class _WithTheTrainer:
    """Calls ``prepare`` when the trainer is imported; before a script's first line nothing may be."""

    def find_spec(self, name, path=None, target=None):
        if name == "stagecoach.trainer.recipe":
            sys.meta_path.remove(self)
            prepare()


if __name__ == "__main__":
    sys.meta_path.insert(0, _WithTheTrainer())
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
