"""The scripts of ``launch/``, run as a user runs them, and what they log."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path) -> None:
    """Run a command in the repository on the CPU, one thread a process; it must succeed."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "WANDB_MODE": "offline",
    }
    result = subprocess.run([str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def train(script: str, folder: Path, settings: Mapping[str, Any], *arguments: str | Path) -> list[dict[str, Any]]:
    """What ``launch/<script>`` logs while it trains with ``settings`` over its recipe, line by line.

    On one rank, whose steps take half of two ranks' time and whose numbers are theirs (tests/distributed).
    """
    run(
        "deepspeed",
        "--num_accelerators",
        "1",
        f"launch/{script}",
        "--run",
        folder,
        *arguments,
        *(part for item in settings.items() for part in ("--set", "=".join(map(str, item)))),
    )
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
