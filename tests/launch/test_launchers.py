"""A training script is the same run under `python`, `torchrun` and `deepspeed`."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_data import ROOT, make_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("tiny"))


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(prefix: list[str], shards: Path, run: Path) -> list[dict]:
    """Metrics of two steps of stage 1."""
    command = [
        *prefix,
        str(ROOT / "launch" / "stage1.py"),
        "--profile",
        "tiny",
        "--data",
        str(shards),
        "--run",
        str(run),
        "--set",
        "stages.1.steps=2",
        "--json",
    ]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    done = subprocess.run(command, env=environment, cwd=run.parent, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    assert str(run / "stage1" / "adapter") in done.stdout
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_launcher_gives_the_same_losses(shards, tmp_path):
    prefixes = {
        "python": [sys.executable],
        # Without the "--" torchrun takes the script's --run for the start of its own --run-path.
        "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port(), "--"],
        "deepspeed": [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", free_port()],
    }
    losses = {}
    for name, prefix in prefixes.items():
        lines = launch(prefix, shards, tmp_path / name)
        losses[name] = [line["loss"] for line in lines if "loss" in line]
        facts = json.loads((tmp_path / name / "run.json").read_text())
        assert json.dumps(facts).count("bridging") >= 1
    assert len(losses["python"]) == 2
    # One rank or two, the global batch is the same.
    assert losses["torchrun"] == pytest.approx(losses["python"], rel=1e-4)
    assert losses["deepspeed"] == pytest.approx(losses["torchrun"], rel=1e-6)
