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

torch.set_num_threads(1)
SEVERAL_RANKS = ("tests/cluster", "tests/distributed", "tests/launch")
"""Their tests start processes of their own and follow one another; those of a file share its fixtures."""


@pytest.hookimpl(tryfirst=True)  # before xdist writes the groups into the names
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test the group that ``pytest -n 2 --dist loadgroup`` keeps in one process."""
    for item in items:
        name = Path(item.path).relative_to(config.rootpath).as_posix()
        group = "several ranks" if name.startswith(SEVERAL_RANKS) else name
        item.add_marker(pytest.mark.xdist_group(group))
