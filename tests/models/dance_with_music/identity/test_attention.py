"""Identity adapters against the published formula."""

import pytest
import torch
import torch.nn.functional as F

from stagecoach.models.dance_with_music.identity.attention import IdentityAdapter, align, over_frames
from tests.models.dance_with_music.champ_inputs import CROSS, copies, diffusers_unet, make_denoiser

B, T, N, C, HEADS = 2, 3, 6, 16, 4


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def adapter():
    adapter = IdentityAdapter(8, C, HEADS).to_empty(device="cpu")
    for i, layer in enumerate((adapter.id_to_k, adapter.id_to_v)):
        layer.weight.data = draw(C, 8, seed=i)
    return adapter


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_it_is_the_published_formula(adapter, scale):
    """z + s ((a - mean a) std z / (std a + 1e-5) + mean z), a = softmax(q k^T / sqrt d) v, moments over tokens and
    channels of each frame (arXiv 2411.17697, section 3.3)."""
    q, z, tokens = draw(B * T, N, HEADS, C // HEADS), 2 + 3 * draw(B * T, N, C, seed=1), draw(B, 4, 8, seed=2)
    found = adapter(q, z, tokens, scale)
    for row in range(B * T):
        k, v = (tokens[row // T] @ layer.weight.T for layer in (adapter.id_to_k, adapter.id_to_v))
        k, v = k.view(1, 4, HEADS, -1).transpose(1, 2), v.view(1, 4, HEADS, -1).transpose(1, 2)
        a = F.scaled_dot_product_attention(q[row : row + 1].transpose(1, 2), k, v).transpose(1, 2).reshape(N, C)
        aligned = (a - a.mean()) * z[row].std() / (a.std() + 1e-5) + z[row].mean()
        torch.testing.assert_close(found[row], z[row] + scale * aligned)


def test_zero_tokens_give_the_mean_and_finite_gradients(adapter):
    """What a fresh face encoder and a withheld face have."""
    tokens = torch.zeros(B, 4, 8, requires_grad=True)
    z = draw(B * T, N, C).requires_grad_()
    out = adapter(draw(B * T, N, HEADS, C // HEADS), z, tokens, 1.0)
    torch.testing.assert_close(out - z, z.mean((1, 2), keepdim=True).expand_as(z))
    out.square().sum().backward()
    assert tokens.grad.isfinite().all()
    assert z.grad.isfinite().all()


def test_alignment_forgets_the_level_and_the_size_of_what_is_read_of_the_face():
    face, picture = draw(B, N, C), draw(B, N, C, seed=1)
    torch.testing.assert_close(align(7 * face - 3, picture), align(face, picture), rtol=1e-3, atol=1e-3)


def test_moments_are_taken_in_fp32():
    face, picture = 1000 + draw(B, N, C).bfloat16(), draw(B, N, C, seed=1).bfloat16()
    expected = align(face.double(), picture.double()).float()
    found = align(face, picture)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=2**-7)


def test_every_adapter_starts_as_a_copy_of_its_own_layer():
    denoiser = make_denoiser(diffusers_unet())
    weights = dict(denoiser.named_parameters())
    same = copies(denoiser)
    assert len(same) == 2 * 4
    for name, source in same.items():
        assert name.rpartition(".processor")[0] == source.rpartition(".to_")[0]
        assert torch.equal(weights[name], weights[source])
        assert weights[name].shape[1] == CROSS


def test_each_frame_gets_what_its_sample_has():
    assert over_frames(torch.tensor([[1.0], [2.0]]), 3).flatten().tolist() == [1, 1, 1, 2, 2, 2]
