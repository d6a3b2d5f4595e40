"""Shared by all tests: one thread per process, no accelerator picked up by accident, and what may run at once."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
# Two workers that fill numba's cache at once crash.
os.environ.setdefault(
    "NUMBA_CACHE_DIR",
    str(
        Path(tempfile.gettempdir(), f"stagecoach-tests-numba-{os.getuid()}-{os.environ.get('PYTEST_XDIST_WORKER', '')}")
    ),
)

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

torch.set_num_threads(1)
SEVERAL_RANKS = ("tests/cluster", "tests/distributed", "tests/launch")
"""Their tests start processes of their own, so they follow one another."""
CHAIN = "several ranks"
LONGEST = (CHAIN, "tests/learning", "tests/benchmarks/test_kill_trials.py")
"""Of files that take minutes, those that begin so, in this order."""


class ByFile(LoadScopeScheduling):
    """The tests of a file, which share its fixtures, in one process, and those of several ranks in one as well."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return CHAIN if file.startswith(SEVERAL_RANKS) else file

    def _assign_work_unit(self, node: WorkerController) -> None:
        """xdist begins with the files of most tests; those that take minutes hold one or two and would come last."""
        for first in reversed(LONGEST):
            for scope in [scope for scope in self.workqueue if scope.startswith(first)]:
                self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """For ``pytest -n 2 --dist loadscope``. xdist's own groups (``loadgroup``) do nothing under pytest 9.2."""
    return ByFile(config, log)
