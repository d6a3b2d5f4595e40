"""Face tokens."""

import pytest
import torch

from stagecoach.models.dance_with_music.config import FaceConfig
from stagecoach.models.dance_with_music.identity.face_tokens import FaceTokens, PerceiverAttention

SMALL = FaceConfig(depth=2, heads=4)


def make():
    torch.manual_seed(0)
    return FaceTokens(SMALL, 64)


@pytest.mark.parametrize(("dim", "expected"), [(1024, 57_183_232), (768, 33_188_352)])
def test_the_counts_are_those_of_the_page(dim, expected):
    with torch.device("meta"):
        assert sum(p.numel() for p in FaceTokens(FaceConfig(), dim).parameters()) == expected


def test_fresh_tokens_are_zero_and_have_size_one_once_they_are_awake():
    model, face, clip = make(), torch.randn(3, 512), torch.randn(3, 64)
    out = model(face, clip)
    assert out.shape == (3, 4, 64)
    assert not out.any()
    torch.nn.init.normal_(model.fusion_model.proj_out.weight, std=0.01)
    out = model(face, clip)
    assert (out.std(-1) > 0.5).all()
    (out * torch.randn_like(out)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_first_gradient_reaches_the_layer_that_starts_at_zero():
    model = make()
    (model(torch.randn(2, 512), torch.randn(2, 64)) * torch.randn(2, 4, 64)).sum().backward()
    assert model.fusion_model.proj_out.weight.grad.any()


def test_face_and_picture_both_count():
    model, face, clip = make(), torch.randn(2, 512), torch.randn(2, 64)
    torch.nn.init.normal_(model.fusion_model.proj_out.weight, std=0.1)
    out = model(face, clip)
    for other in (model(face.flip(0), clip), model(face, clip.flip(0))):
        assert (other - out).abs().max() > 1e-2


def test_attention_is_the_published_formula():
    """q of the tokens; k and v of picture and tokens, normalised by norms of their own; scaled by sqrt of a head."""
    torch.manual_seed(0)
    layer, x, latents = PerceiverAttention(32, 4), torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    both = torch.cat([layer.norm1(x), layer.norm2(latents)], 1)
    q = layer.to_q(layer.norm2(latents)).view(2, 5, 4, 8).transpose(1, 2)
    k, v = (part.reshape(2, 8, 4, 8).transpose(1, 2) for part in layer.to_kv(both).chunk(2, -1))
    weight = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    expected = layer.to_out((weight @ v).transpose(1, 2).reshape(2, 5, 32))
    torch.testing.assert_close(layer(x, latents), expected, atol=1e-5, rtol=1e-5)


def test_sixteen_bits_in_sixteen_bits_out_with_weights_of_either():
    model, face, clip = make(), torch.randn(2, 512), torch.randn(2, 64).bfloat16()
    assert model(face, clip).dtype == torch.bfloat16
    assert model.bfloat16()(face, clip).dtype == torch.bfloat16


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"face\.heads, 5"):
        FaceTokens(FaceConfig(heads=5), 64)
