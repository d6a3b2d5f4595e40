"""Seconds, frames and memory of samples."""

import time

import psutil
import pytest
import torch

from stagecoach.models.metrics.speed import Speed


def test_each_sample_that_ends_is_timed_and_the_peak_is_that_of_the_process():
    speed = Speed(torch.device("cpu"))
    for frames in (6, 12):
        with speed.sample(frames):
            time.sleep(0.05)
    with pytest.raises(RuntimeError), speed.sample(6):
        raise RuntimeError
    found = speed.result()
    assert all(0.05 <= seconds < 5 for seconds in found["seconds_per_sample"])
    expected = [frames / seconds for frames, seconds in zip((6, 12), found["seconds_per_sample"], strict=True)]
    assert found["frames_per_second"] == pytest.approx(expected)
    held = torch.ones(2**26)  # a quarter of a GiB
    now = psutil.Process().memory_info().rss / 2**30
    peak = speed.result()["peak_memory"][0]
    assert 0.99 * now <= peak < 100
    assert peak >= found["peak_memory"][0]
    assert held.sum() == 2**26
