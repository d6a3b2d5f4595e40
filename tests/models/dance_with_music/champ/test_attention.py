"""Attention next to a reference, and its first two moments."""

import hypothesis.strategies as st
import pytest
import torch
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings

from stagecoach.models.dance_with_music.champ.attention import (
    adain,
    concat_reference,
    cross_attention,
    self_attention,
    use_attend,
)
from stagecoach.models.dance_with_music.identity.attention import IdentityAdapter

B, T, L, C, HEADS = 2, 3, 5, 16, 4


@pytest.fixture
def attn():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Attention(C, heads=HEADS, dim_head=C // HEADS)
    use_attend(module)
    return module.requires_grad_(False)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_frame_attends_to_its_own_tokens_and_to_those_of_its_samples_reference(attn):
    """Against the formula, frame by frame: K = [W_k x || W_k r], V likewise."""
    x, reference = draw(B * T, L, C), draw(B, 2 * L, C, seed=1)
    found = self_attention(attn, x, reference, torch.tensor([True, True]))
    for row in range(B * T):
        q = attn.to_q(x[row]).view(L, HEADS, -1)
        source = torch.cat([x[row], reference[row // T]])
        k, v = (layer(source).view(3 * L, HEADS, -1) for layer in (attn.to_k, attn.to_v))
        weights = (torch.einsum("qhd,khd->hqk", q, k) / (C // HEADS) ** 0.5).softmax(-1)
        expected = attn.to_out[0](torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
        torch.testing.assert_close(found[row], expected)


@settings(max_examples=20, deadline=None)
@given(b=st.integers(1, 3), frames=st.integers(1, 3), times=st.integers(1, 3), seed=st.integers(0, 99))
def test_own_keys_stand_in_exactly_for_a_reference_that_is_not_given(b, frames, times, seed):
    own, theirs = draw(b * frames, L, HEADS, 2, seed=seed), draw(b, times * L, HEADS, 2, seed=seed + 1)
    chosen = torch.rand(b, generator=torch.Generator().manual_seed(seed)) < 0.5
    both = concat_reference(own, theirs, chosen)
    assert both.shape == (b * frames, (1 + times) * L, HEADS, 2)
    for row in range(b * frames):
        expected = theirs[row // frames] if chosen[row // frames] else own[row].repeat(times, 1, 1)
        assert torch.equal(both[row], torch.cat([own[row], expected]))


@pytest.mark.parametrize("times", [1, 2, 3])
def test_with_every_reference_withheld_attention_is_that_to_itself(attn, times):
    x, reference = draw(B * T, L, C), draw(B, times * L, C, seed=1)
    nobody = torch.zeros(B, dtype=torch.bool)
    torch.testing.assert_close(self_attention(attn, x, reference, nobody), self_attention(attn, x, None, None))


def test_adain_takes_mean_and_standard_deviation_of_each_channel_over():
    x, reference = draw(B * T, 50, C), 3 * draw(B, 70, C, seed=1) + 2
    moved = adain(x, reference, torch.tensor([True, False]))
    assert torch.equal(moved[T:], x[T:])
    for row in range(T):
        torch.testing.assert_close(moved[row].mean(0), reference[0].mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(moved[row].std(0), reference[0].std(0), rtol=1e-3, atol=1e-4)
        # Shapes in space stay: only scaled and shifted.
        correlation = torch.corrcoef(torch.stack([moved[row, :, 0], x[row, :, 0]]))[0, 1]
        assert correlation > 0.999


def test_cross_attention_without_a_face_is_plain(attn):
    plain = cross_attention(attn, draw(B * T, L, C), draw(B * T, 1, C), None, 1.0)
    attn.set_processor(IdentityAdapter(C, C, HEADS).to_empty(device="cpu"))
    assert torch.equal(cross_attention(attn, draw(B * T, L, C), draw(B * T, 1, C), None, 1.0), plain)
