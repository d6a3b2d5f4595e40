"""Rotary embedding: Wan's numbers, and the identity for tokens without a place."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor

from stagecoach.models.fantasy_world.config import SPECIAL_TOKENS
from stagecoach.models.fantasy_world.rope import RotaryTables, rotate

LATENT = torch.empty(1, 16, 3, 8, 12)  # grid (3, 4, 6)


def angles(head_dim, frame, y, x):
    cos, sin = RotaryTables([head_dim]).video(head_dim, LATENT)
    token = (frame * 4 + y) * 6 + x
    return torch.atan2(sin, cos)[0, token, 0, 0::2]


def test_a_head_of_128_is_split_44_42_42_with_theta_10000():
    step = angles(128, 1, 1, 1)  # the frequencies themselves
    found = [step[1], step[21], step[22 + 1], step[22 + 20]]
    torch.testing.assert_close(
        torch.stack(found), torch.tensor([0.6579332247, 1.519911e-4, 0.6449466771, 1.550516e-4]), rtol=1e-5, atol=0
    )
    assert torch.equal(angles(128, 1, 0, 0)[22:], torch.zeros(42))
    assert torch.equal(angles(128, 0, 0, 1)[:43], torch.zeros(43))


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
def test_special_tokens_are_not_turned_and_patches_are_turned_as_in_the_video(head_dim):
    tables = RotaryTables([head_dim])
    x = torch.randn(1, 3 * (SPECIAL_TOKENS + 24), 2, head_dim)
    turned = rotate(x, tables.geometry(head_dim, LATENT)).unflatten(1, (3, -1))
    x = x.unflatten(1, (3, -1))
    assert torch.equal(turned[:, :, :SPECIAL_TOKENS], x[:, :, :SPECIAL_TOKENS])
    patches = rotate(x[:, :, SPECIAL_TOKENS:].flatten(1, 2), tables.video(head_dim, LATENT))
    torch.testing.assert_close(turned[:, :, SPECIAL_TOKENS:].flatten(1, 2), patches)


def test_scores_depend_on_the_distance_only():
    rotation = RotaryTables([32]).video(32, LATENT)
    q, k = (torch.randn(1, 1, 1, 32).expand(1, 72, 1, 32) for _ in range(2))
    scores = torch.einsum("bnhd,bmhd->nm", rotate(q, rotation), rotate(k, rotation)).view(3, 4, 6, 3, 4, 6)
    torch.testing.assert_close(scores[0, 1, 2, 1, 2, 3], scores[1, 2, 4, 2, 3, 5])
    assert (scores[0, 1, 2, 1, 2, 3] - scores[0, 1, 2, 1, 2, 4]).abs() > 1e-4


def test_rotation_equals_that_of_diffusers():
    attention = WanAttention(64, 2, 32, processor=WanAttnProcessor())
    rotation = RotaryTables([32]).video(32, LATENT)
    x = torch.randn(1, 72, 64)
    q, k, v = (
        part.unflatten(2, (2, 32))
        for part in (attention.norm_q(attention.to_q(x)), attention.norm_k(attention.to_k(x)), attention.to_v(x))
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(
        *(part.transpose(1, 2) for part in (rotate(q, rotation), rotate(k, rotation), v))
    )
    torch.testing.assert_close(
        attention.to_out[0](mixed.transpose(1, 2).flatten(2)), attention(x, None, None, rotation)
    )


def test_the_backward_keeps_no_copy_of_the_activations():
    saved = []
    x = torch.randn(1, 72, 2, 32, dtype=torch.bfloat16, requires_grad=True)
    rotation = RotaryTables([32]).video(32, LATENT)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        assert rotate(x, rotation).dtype == torch.bfloat16
    assert saved
    assert all(t.dtype == torch.float32 and t.numel() <= 72 * 16 for t in saved)
