"""Killed runs end as if nobody had killed them."""

from argparse import Namespace
from collections import Counter

import pytest

from benchmarks import kill_trials


def test_faults_are_counted():
    whole = {"losses": [1.0, 2.0], "samples": {0: ["a", "b"], 1: ["c"]}, "files": {}, "left": []}
    found = whole | {"losses": [1.0, 2.5], "samples": {0: ["a", "a"], 1: ["c"]}, "left": [".tmp-checkpoint_3"]}
    assert not kill_trials.compare(whole, whole).total()
    assert kill_trials.compare(found, whole) == Counter(
        lost_samples=1, repeated_samples=1, unequal_losses=1, unequal_checkpoints=0, folders_left=1
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_runs_that_are_killed_end_with_the_same_samples_losses_and_checkpoints(tmp_path):
    result = kill_trials.run_trials(Namespace(runs=20, seed=0, folder=str(tmp_path)))
    assert result["runs"] == 20
    assert result["kills"] >= 40
    assert result["kills_inside_a_save"] >= 10
    assert {name: result[name] for name in kill_trials.FAULTS} == dict.fromkeys(kill_trials.FAULTS, 0)
