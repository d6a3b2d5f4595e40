"""A run folder in which a file was damaged goes on as it should or says which file, and never with what is wrong."""

from argparse import Namespace

import pytest

from benchmarks import mutations


@pytest.mark.slow
def test_thirty_mutated_run_folders_are_named_or_go_on_as_if_untouched(tmp_path):
    result = mutations.run_trials(Namespace(runs=30, seed=1, folder=str(tmp_path / "trials")))
    assert not result["faults"]
    assert result["refused"] + result["passed over"] >= 10
