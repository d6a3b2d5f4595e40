"""The benchmark of checkpoints measures what it says; its times are not looked at."""

import json
import subprocess
import sys
from statistics import median

import pytest

from tests.tiny_data import ROOT


@pytest.mark.slow
def test_a_checkpoint_takes_sixteen_bytes_an_element_with_an_average(tmp_path):
    result = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "save.py", "--elements", "2100000", "--folder", tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["bytes_per_element"] == pytest.approx(16, abs=0.1)
    assert found["bytes"] > 2 * 1024**2 * 16
    stalls, behind = found["stall_seconds"], found["write_seconds_behind"]
    assert len(stalls) == len(behind) == 5
    assert found["stall_share_of_write_behind"] == pytest.approx(median(stalls) / median(behind), abs=2e-3)
    inside = min(found["write_seconds_in_the_step"])
    assert found["stall_share_of_write_in_the_step"] == pytest.approx(min(stalls) / inside, abs=2e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint_10"]
