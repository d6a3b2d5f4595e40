"""Validation visits each held-out sample once, with as many forwards on every rank."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluate import rank_share


@given(samples=st.integers(1, 60), size=st.integers(1, 12))
def test_ranks_share_samples_without_loss_or_repetition_and_do_equal_work(samples, size):
    shares = [rank_share(samples, rank, size) for rank in range(size)]
    assert len({len(indices) for indices, _ in shares}) == 1
    counted = [i for indices, flags in shares for i, flag in zip(indices, flags, strict=True) if flag]
    assert sorted(counted) == list(range(samples))
    assert all(0 <= i < samples for indices, _ in shares for i in indices)
