"""Assemble-Attn in segments against InstanceAssemble's loop over crops, which calls diffusers' own attention."""

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import nn

from stagecoach.models.common.attention import set_backend
from stagecoach.models.movie_post_production import network as network_module
from stagecoach.models.movie_post_production.config import SIZES
from stagecoach.models.movie_post_production.layout import assemble_attention as assemble
from stagecoach.models.movie_post_production.layout.assemble_attention import AssembleAttend, packs
from stagecoach.models.movie_post_production.layout.instance_tokens import layout_weight
from stagecoach.models.movie_post_production.layout.regions import box_centres
from tests.models.movie_post_production.inputs import BOXES, make_inputs, make_network, open_gates

TINY = SIZES["tiny"]


@pytest.fixture(scope="module")
def network():
    net = open_gates(make_network(TINY, 1))
    with torch.no_grad():  # biases of the frozen base too, since s_t multiplies them
        g = torch.Generator().manual_seed(1)
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    return net


@pytest.fixture
def state(network):
    """Streams before a layout branch, and what the blocks read."""
    g, inputs = torch.Generator().manual_seed(2), make_inputs(TINY)
    (h, w), d = TINY.image.grid, TINY.backbone.dim
    with torch.no_grad():
        ids = torch.cat([torch.zeros(TINY.backbone.text_length, 3), network_module.grid_ids(h, w)])
        refs, layout = network.gather(inputs["instances"], h, w, network.pos_embed(ids), 0.7)
    image, temb = torch.randn(2, h * w, d, generator=g), torch.randn(2, d, generator=g)
    return inputs["instances"], refs, layout, image, temb


def crops(instances, refs, network, image, layout):
    """Picture, slot, tokens, weight and rotation of [l_i; crop] of each valid reference."""
    centres = box_centres(instances["boxes"], *TINY.image.grid)
    weight = layout_weight(refs["alpha"], TINY.layout.layout_min) * 0.7
    for b, i in instances["valid"].nonzero().tolist():
        tokens = refs["cover"][b, i].nonzero().flatten()
        ids = torch.cat([centres[b, i][None], network_module.grid_ids(*TINY.image.grid)[tokens]])
        yield b, i, tokens, weight[b, i], network.pos_embed(ids)


@torch.no_grad()
def test_a_double_block_equals_the_loop_over_crops(network, state):
    """R14(c), section 1.4: joint attention over [l_i; crop], W_b, weight, scatter-add, density average, gate."""
    instances, refs, layout, image, temb = state
    block = network.transformer_blocks[0]
    row, text_row = block.norm1.linear(block.norm1.silu(temb)), block.norm1_context.linear(block.norm1.silu(temb))
    shift, scale, gate, *_ = row.unsqueeze(1).chunk(6, -1)
    own_shift, own_scale, own_gate, ff_shift, ff_scale, ff_gate = text_row.unsqueeze(1).chunk(6, -1)
    normed = block.norm1.norm(image) * (1 + scale) + shift
    own_normed = block.norm1_context.norm(layout) * (1 + own_scale) + own_shift

    total, count, own = torch.zeros_like(image), torch.zeros(*image.shape[:2], 1), layout.clone()
    for b, i, tokens, weight, rotation in crops(instances, refs, network, image, layout):
        out, own_out = block.attn(
            normed[b : b + 1, tokens], own_normed[b : b + 1, i : i + 1], image_rotary_emb=rotation
        )
        total[b, tokens] += weight * block.layout_out(out)[0]
        count[b, tokens] += 1
        own[b, i] += (own_gate[b] * own_out[0])[0]
    expected = image + gate * total / count.clamp_min(1)
    own = own + ff_gate * block.ff_context(block.norm2_context(own) * (1 + ff_scale) + ff_shift)

    found, found_own = block._layout(image, layout, temb, row[:, None], text_row[:, None], refs)
    assert (count > 1).any()  # boxes do overlap
    assert (expected - image).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_own[instances["valid"]], own[instances["valid"]], atol=1e-5, rtol=1e-5)
    untouched = ~refs["cover"].any(1)
    assert untouched.any()
    assert torch.equal(found[untouched], image[untouched])  # R14(g)


@torch.no_grad()
def test_a_single_block_equals_the_loop_over_crops(network, state):
    instances, refs, layout, image, temb = state
    block = network.single_transformer_blocks[0]
    row = block.norm.linear(block.norm.silu(temb))
    shift, scale, gate = row.unsqueeze(1).chunk(3, -1)
    total, count, own = torch.zeros_like(image), torch.zeros(*image.shape[:2], 1), layout.clone()
    for b, i, tokens, weight, rotation in crops(instances, refs, network, image, layout):
        sequence = torch.cat([layout[b, i][None], image[b, tokens]])[None]
        normed = block.norm.norm(sequence) * (1 + scale[b]) + shift[b]
        out = torch.cat([block.attn(normed, image_rotary_emb=rotation), block.act_mlp(block.proj_mlp(normed))], -1)
        out = (gate[b] * block.proj_out(out))[0]
        total[b, tokens] += weight * block.layout_out(out[1:])
        count[b, tokens] += 1
        own[b, i] += out[0]
    found, found_own = block._layout(image, layout, temb, row[:, None], refs)
    torch.testing.assert_close(found, image + total / count.clamp_min(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_own[instances["valid"]], own[instances["valid"]], atol=1e-5, rtol=1e-5)


def loop_kernel(q, k, v, starts, longest, backend):
    """The varlen kernel's task, segment by segment."""
    assert longest == starts.diff().max()
    pieces = [x.transpose(0, 1).tensor_split(starts[1:-1].tolist(), dim=1) for x in (q, k, v)]
    return torch.cat(
        [nn.functional.scaled_dot_product_attention(*piece) for piece in zip(*pieces, strict=True)], dim=1
    ).transpose(0, 1)


def test_packed_segments_equal_padded_ones_with_their_gradients(network, monkeypatch):
    def run():
        network.zero_grad()
        velocity = network.predict(**make_inputs(TINY))["velocity"]
        velocity.square().mean().backward()
        return velocity.detach(), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}

    velocity, gradients = run()
    monkeypatch.setattr(network_module, "packs", lambda *_: True)
    monkeypatch.setattr(assemble, "varlen_attention", loop_kernel)
    packed, packed_gradients = run()
    torch.testing.assert_close(packed, velocity, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, atol=1e-5, rtol=1e-4)


def test_attention_is_over_more_than_one_key(network):
    """D1: with one key the output is the value, regardless of the query, and to_q learns nothing."""
    network.zero_grad()
    network.predict(**make_inputs(TINY))["velocity"].square().mean().backward()
    for block in (network.transformer_blocks[0], network.single_transformer_blocks[0]):
        for name in ("to_q", "to_k", "to_v"):
            gradient = getattr(block.attn, name).lora_B["default"].weight.grad
            assert gradient.abs().max() > 1e-8, name


def test_backends_choose_the_form():
    net = make_network(TINY, 1)
    set_backend(net, AttentionBackendName.FLASH)
    attends = [m for m in net.modules() if isinstance(m, AssembleAttend)]
    assert len(attends) == 3
    assert all(m.backend == AttentionBackendName.FLASH for m in attends)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert packs(AttentionBackendName.FLASH, cuda, torch.bfloat16)
    assert packs(AttentionBackendName._FLASH_3, cuda, torch.bfloat16)
    assert not packs(AttentionBackendName.XFORMERS, cuda, torch.bfloat16)
    assert not packs(AttentionBackendName.FLASH, cuda, torch.float32)
    assert not packs(AttentionBackendName.NATIVE, cpu, torch.bfloat16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_varlen_kernel_of_a_gpu_equals_padded_attention():
    net = open_gates(make_network(TINY, 3, torch.bfloat16)).to("cuda", torch.bfloat16)
    inputs = make_inputs(TINY, BOXES)
    inputs = {k: {n: x.cuda() for n, x in v.items()} if isinstance(v, dict) else v.cuda() for k, v in inputs.items()}
    assert packs(AttentionBackendName.NATIVE, torch.device("cuda"), torch.bfloat16)
    with torch.no_grad():
        packed = net.predict(**inputs)["velocity"]
        set_backend(net, AttentionBackendName._NATIVE_MATH)
        torch.testing.assert_close(packed, net.predict(**inputs)["velocity"], atol=0.05, rtol=0.05)
