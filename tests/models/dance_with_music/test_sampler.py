"""Sampling: guidance with the nulls of training, and windows over long clips."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.models.dance_with_music.config import DiffusionConfig, SamplingConfig
from stagecoach.models.dance_with_music.sampler import contexts, guided, unconditional

SHAPE = (2, 3, 4, 2, 2)


def _noise(seed: int = 0, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _conditions(frames: int = 3) -> dict:
    yes = torch.ones(2, dtype=torch.bool)
    return {
        "references": _noise(5, (2, 1, 4, 2, 2)),
        "reference_given": yes,
        "embedding": _noise(6, (2, 1, 8)),
        "embedding_given": yes,
        "face": _noise(7, (2, 512)),
        "face_given": yes,
        "guidance": {"pose": _noise(8, (2, frames, 4, 2, 2))},
        "guidance_given": yes,
        "condition_scale": 1.5,
        "identity_scale": 1.0,
    }


def test_without_conditions_means_without_those_that_training_drops():
    given_, null = _conditions(), unconditional(_conditions(), DiffusionConfig())
    assert not any(null[f"{name}_given"].any() for name in ("reference", "embedding", "face"))
    assert null["guidance_given"].all()
    assert null["condition_scale"] == 1.5
    assert torch.equal(null["references"], given_["references"])
    every = unconditional(given_, DiffusionConfig(drop_guidance=0.1, drop_face=0.0))
    assert not every["guidance_given"].any()
    assert every["face_given"].all()


def _fake(x, level, conditions):
    """Linear in what it is given, and a condition that is not given counts for nothing."""
    there = conditions["embedding_given"].float().view(-1, 1, 1, 1, 1)
    return x + there * level.view(-1, 1, 1, 1, 1) + conditions["guidance"]["pose"]


def test_guidance_leads_from_the_null_over_the_condition():
    conditions, x, level = _conditions(), _noise(9), torch.tensor([0.5, 2.0])
    null = unconditional(conditions, DiffusionConfig())
    calls = []

    def denoise(x, level, given_):
        calls.append(len(x))
        return _fake(x, level, given_)

    found = guided(denoise, conditions, null, SamplingConfig(guidance_scale=3.0))(x, level)
    assert torch.allclose(found, _fake(x, 3 * level, conditions), atol=1e-5)
    assert torch.equal(
        guided(denoise, conditions, null, SamplingConfig(guidance_scale=1.0))(x, level), _fake(x, level, conditions)
    )
    assert calls == [4, 2]


def test_long_clips_are_averaged_where_windows_overlap_and_each_sees_its_own_guidance():
    frames = 9
    conditions, x = _conditions(frames), torch.zeros(2, frames, 4, 2, 2)
    calls = []

    def denoise(x, level, given_):
        calls.append(x.shape[1])
        return given_["guidance"]["pose"] + len(calls)

    predict = guided(
        denoise, conditions, conditions, SamplingConfig(guidance_scale=1.0, context_length=4, context_overlap=2)
    )
    found = predict(x, torch.zeros(2)) - conditions["guidance"]["pose"]
    assert calls == [4, 4, 4, 4]  # 0-3, 2-5, 4-7, 5-8
    expected = torch.tensor([1, 1, 1.5, 1.5, 2.5, 3, 3.5, 3.5, 4])
    assert torch.allclose(found, expected.view(1, -1, 1, 1, 1).expand_as(found), atol=1e-5)


@settings(max_examples=80, deadline=None)
@given(frames=st.integers(1, 200), length=st.integers(2, 40), data=st.data())
def test_windows_cover_each_frame_and_share_at_least_the_overlap(frames, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    found = contexts(frames, length, overlap)
    assert sorted({k for part in found for k in range(part.start, part.stop)}) == list(range(frames))
    assert all(part.stop - part.start == min(length, frames) for part in found)
    assert all(a.stop - b.start >= overlap for a, b in itertools.pairwise(found))


def test_an_overlap_as_long_as_the_context_is_refused():
    with pytest.raises(
        ValueError, match=r"sampling\.context_overlap is 24, expected less than sampling\.context_length, 24"
    ):
        SamplingConfig(context_overlap=24)
