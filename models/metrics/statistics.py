"""Means with intervals over samples, and two results compared sample by sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from stagecoach.data.files import import_extra
from stagecoach.models.metrics.metric import Unavailable

K = TypeVar("K")
RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """A mean over ``n`` samples with its 95 % bootstrap interval; ``left_out`` samples had no number."""

    mean: float
    low: float
    high: float
    n: int
    left_out: int


@dataclass(frozen=True)
class Paired:
    """``difference``: of A less B over the samples that both have; ``above``, ``below`` and ``equal``: in how many A is
    above B, below, or the same; ``p``: of the two-sided sign test; ``left_out``: samples that one of them lacks."""

    difference: Summary
    above: int
    below: int
    equal: int
    p: float
    left_out: int


def summarise(values: Sequence[float], counts: Sequence[float] | None = None, seed: int = 0) -> Summary:
    """The mean over samples and the interval between the 2.5th and the 97.5th percentile of means of ``RESAMPLES``
    resampled sets (B. Efron, 1979), the same for the same ``seed``.

    Args:
        values: one number per sample, NaN where it could not be measured; with ``counts``, a sum per sample.
        counts: what each sum counts. The mean is the sum of all by their count (boxes weigh, not pictures), and a
            sample that counts nothing is left out; samples are resampled, not what they count.

    Raises ``Unavailable`` where no sample has a number.
    """
    total = np.asarray(values, np.float64)
    count = np.ones_like(total) if counts is None else np.asarray(counts, np.float64)
    if total.ndim != 1 or total.shape != count.shape:
        raise ValueError(f"values of shape {total.shape} and counts of {count.shape} found, expected one per sample")
    there = np.isfinite(total) & (count > 0)
    left_out = int((~there).sum())
    total, count = total[there], count[there]
    if not len(total):
        raise Unavailable(f"none of {left_out} samples could be measured")
    chosen = np.random.default_rng(seed).integers(len(total), size=(RESAMPLES, len(total)))
    means = total[chosen].sum(1) / count[chosen].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Summary(float(total.sum() / count.sum()), float(low), float(high), len(total), left_out)


def compare(a: Mapping[K, float], b: Mapping[K, float], seed: int = 0) -> Paired:
    """A against B, by sample (request and seed), with the exact sign test over the samples where they differ. Raises
    ``Unavailable`` where they have no sample in common."""
    both = [key for key in a if key in b and np.isfinite(a[key]) and np.isfinite(b[key])]
    if not both:
        raise Unavailable(f"{len(a)} and {len(b)} samples were measured, none of them in both")
    differences = np.array([a[key] - b[key] for key in both])
    above, below = int((differences > 0).sum()), int((differences < 0).sum())
    test = import_extra("scipy.stats", "the sign test", "evaluate")
    p = float(test.binomtest(above, above + below).pvalue) if above + below else 1.0
    left_out = len(a.keys() | b.keys()) - len(both)
    return Paired(summarise(differences.tolist(), seed=seed), above, below, len(both) - above - below, p, left_out)
