"""Means, intervals and paired comparisons."""

import math

import numpy as np
import pytest

from stagecoach.models.metrics.metric import Absent, Metric, Unavailable, measured
from stagecoach.models.metrics.statistics import compare, summarise


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    summaries = [summarise(random.exponential(2.0, 60).tolist(), seed=k) for k in range(200)]
    covered = sum(s.low <= 2.0 <= s.high for s in summaries)
    assert 175 <= covered <= 199
    widths = [s.high - s.low for s in summaries]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 2 / math.sqrt(60), rel=0.1)


def test_the_same_seed_gives_the_same_interval_and_what_was_not_measured_is_counted():
    values = [1.0, 2.0, math.nan, 6.0]
    first = summarise(values)
    assert first == summarise(values)
    many = [float(i * i) for i in range(20)]
    assert summarise(many) == summarise(many)
    assert summarise(many).low != summarise(many, seed=1).low
    assert first.mean == 3.0
    assert (first.n, first.left_out) == (3, 1)
    assert measured(summarise, [math.nan]) == Absent("none of 1 samples could be measured")
    one = summarise([4.0])
    assert (one.mean, one.low, one.high) == (4.0, 4.0, 4.0)


def test_sums_are_divided_by_what_they_count():
    found = summarise([3.0, 1.0, 0.0], [4, 1, 0])
    assert found.mean == pytest.approx(0.8)
    assert (found.n, found.left_out) == (2, 1)
    assert found.low == pytest.approx(0.75)
    assert found.high == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"values of shape \(1,\) and counts of \(2,\) found"):
        summarise([1.0], [1, 2])


def test_two_results_are_compared_sample_by_sample():
    truth = {f"{k}": float(k) for k in range(12)}
    a = {key: value + 1.0 for key, value in truth.items()}
    a["0"], a["1"], a["only"] = -5.0, truth["1"], 0.0
    found = compare(a, truth)
    assert (found.above, found.below, found.equal, found.left_out) == (10, 1, 1, 1)
    # Two-sided, 11 trials: twice P(at least 10 of 11).
    assert found.p == pytest.approx(2 * (11 + 1) / 2**11)
    assert found.difference.mean == pytest.approx((10 - 5) / 12)
    same = compare(truth, truth)
    assert (same.p, same.equal, same.difference.mean) == (1.0, 12, 0.0)
    with pytest.raises(Unavailable, match="1 and 1 samples were measured, none of them in both"):
        compare({"a": 1.0}, {"b": 1.0})


def test_a_metric_says_its_direction_and_an_error_is_no_reason():
    assert [Metric("m", higher_is_better=h).better for h in (True, False, None)] == ["higher", "lower", "neither"]
    held = Metric("psnr", "dB", True, needs="x").held_out(baseline=True)
    assert held == Metric("val_psnr", "dB", True, "val_psnr_baseline", "x")
    with pytest.raises(ValueError, match=r"math domain error|expected a"):
        measured(math.sqrt, -1.0)
