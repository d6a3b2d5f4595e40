"""128 ranks' heartbeats and numbers cost rank 0 less than a hundredth of a step."""

import pytest

from benchmarks.watch_scale import STEP_SECONDS, measure


@pytest.fixture(scope="module")
def found():
    return measure(128, 100)


def test_a_log_line_of_128_ranks_takes_less_than_a_hundredth_of_a_step(found):
    assert found["log_line_seconds"] < 0.01 * STEP_SECONDS
    assert found["sent_bytes_per_rank_and_log_line"] < 1000


def test_memory_does_not_grow_with_log_lines(found):
    assert found["log_line_peak_bytes"] < 5e6
    assert found["bytes_kept_per_log_line"] < 2000
    assert found["metrics_bytes_per_log_line"] < 10_000


def test_heartbeats_of_128_ranks_cost_the_ranks_nothing_and_the_watcher_a_part_of_a_core(found):
    assert found["beat_seconds"] < 1e-4
    assert found["watcher_turn_cpu_seconds"] < 0.1
    assert found["run_folder_files"] == 16
    assert found["run_folder_bytes_per_copy"] < 128 * 600
