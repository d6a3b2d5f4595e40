"""The stream benchmark measures what it says, on a small set; its figures are not looked at."""

import json
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest

from benchmarks import stream
from benchmarks.stream_readers import stagecoach, webdataset
from tests.tiny_data import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    stream.write_set(folder / "tars", stream.LARGE, 20, 40, 10 * 10**6)
    return folder


def test_both_readers_give_the_same_samples(folder):
    ours = {bytes(sample["latent"][0, 0, 0]): sample for sample in stagecoach(folder)}
    theirs = list(webdataset(folder))
    assert len(ours) == len(theirs) == 20
    for sample in theirs:
        same = ours[bytes(sample["latent.npy"][0, 0, 0])]
        np.testing.assert_array_equal(same["latent"], sample["latent.npy"])
        np.testing.assert_array_equal(same["text"], sample["text.npy"])


@pytest.mark.slow
def test_speed_sets_the_readers_side_by_side(folder):
    result = stream.speed(Namespace(folder=folder, samples=20, rounds=1, streaming_python=None))
    assert set(result["readers"]) == {"stagecoach", "stagecoach batches", "webdataset", "webdataset batches"}
    assert all(value > 0 for reader in result["readers"].values() for value in reader.values())
    assert set(result["times_better_than"]["webdataset"]["first_sample_after_resume"]) == {"0.1", "0.5", "0.9"}


def test_memory_is_watched_over_the_samples_asked_for(monkeypatch):
    done = subprocess.run(
        [sys.executable, "benchmarks/stream.py", "memory", "--samples", "800", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert max(map(int, json.loads(done.stdout)["resident_mb"])) == 800
    monkeypatch.setattr(stream, "_resident_mb", iter(range(0, 10000, 50)).__next__)
    with pytest.raises(MemoryError, match=r"grew by 450\.0 MB from 80 to 800 samples"):
        stream.memory(Namespace(samples=800))
