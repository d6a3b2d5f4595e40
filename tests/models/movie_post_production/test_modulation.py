"""Offsets of AdaLN inside the boxes."""

import pytest
import torch
from torch import nn

from stagecoach.models.movie_post_production.config import SIZES, ModulationConfig
from stagecoach.models.movie_post_production.modulation import (
    BlockModulation,
    ModulationHead,
    move_scalars,
    spread,
    temb_rows,
)
from tests.models.movie_post_production.inputs import make_inputs, make_network, open_gates

TINY = SIZES["tiny"]
SCALAR = TINY.model_copy(update={"modulation": ModulationConfig(space="scalar12")})


def block_inputs(network, seed=3):
    g, config = torch.Generator().manual_seed(seed), network.config
    (h, w), d = config.image.grid, config.backbone.dim
    with torch.no_grad():
        rotary = network.pos_embed(torch.zeros(config.backbone.text_length + h * w, 3))
        refs, _ = network.gather(make_inputs(config)["instances"], h, w, rotary, 1.0)
    image, text = torch.randn(2, h * w, d, generator=g), torch.randn(2, config.backbone.text_length, d, generator=g)
    return refs, rotary, image, text, torch.randn(2, d, generator=g)


@torch.no_grad()
def test_the_same_offset_on_all_tokens_is_adaln_of_the_moved_embedding():
    """R14(b): diffusers' own norm of temb + offset, for attention and feed-forward vectors alike."""
    block = make_network(TINY, 1).transformer_blocks[1]
    _, _, image, _, temb = block_inputs(make_network(TINY, 1))
    offset, t = torch.randn(2, 1, temb.shape[1]), image.shape[1]
    rows = temb_rows(block.norm1.linear, temb, offset, torch.ones(2, 1))
    vectors = block.norm1.linear(block.norm1.silu(temb)).unsqueeze(1) + spread(torch.ones(2, 1, t), rows)
    normed, *expected = block.norm1(image, emb=temb + offset[:, 0])
    shift, scale, *rest = vectors.chunk(6, dim=-1)
    torch.testing.assert_close(block.norm1.norm(image) * (1 + scale) + shift, normed, atol=2e-6, rtol=1e-5)
    for found, vector in zip(rest, expected, strict=True):
        torch.testing.assert_close(found, vector.unsqueeze(1).expand_as(found), atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_a_whole_block_with_one_reference_over_the_picture_is_diffusers_block_at_the_moved_embedding():
    """R14(b) through the block: only its text stream knows the embedding as it was."""
    network = open_gates(make_network(TINY, 2))
    block = network.transformer_blocks[1]  # no layout there
    refs, rotary, image, text, temb = block_inputs(network)
    everywhere = torch.ones(2, 1, image.shape[1])
    refs |= {"average": everywhere, "alpha": torch.ones(2, 1), "shared": refs["shared"][:, :1]}
    moved = temb + block.modulation(refs["shared"], None)[:, 0]
    found, found_text, *_ = block(image, text, torch.zeros(2, 1, 32), temb, None, rotary, refs)
    text_of = {"now": block.norm1_context.linear(block.norm1_context.silu(temb)).unsqueeze(1)}
    expected, expected_text = block._base(
        image, text, block.norm1.linear(block.norm1.silu(moved)).unsqueeze(1), text_of["now"], rotary
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_text, expected_text, atol=1e-5, rtol=1e-5)


def test_an_offset_of_nothing_changes_nothing_to_the_last_bit():
    linear, temb = nn.Linear(64, 384), torch.randn(3, 64)
    for dtype in (torch.float32, torch.bfloat16):
        rows = temb_rows(linear.to(dtype), temb.to(dtype), torch.zeros(3, 5, 64, dtype=dtype), torch.rand(3, 5))
        assert not rows.any()


def test_alpha_enters_once():
    """D8: an offset in the linear part of silu moves the vectors by alpha, not by alpha squared."""
    linear = nn.Linear(16, 96)
    temb, offset = torch.zeros(1, 16), 1e-3 * torch.randn(1, 1, 16)
    half, whole = (temb_rows(linear, temb, offset, torch.full((1, 1), a)) for a in (0.5, 1.0))
    torch.testing.assert_close(half, whole / 2, atol=1e-6, rtol=1e-2)


@pytest.mark.parametrize("config", [ModulationConfig(), ModulationConfig(rank=4), ModulationConfig(space="scalar12")])
def test_both_layers_of_the_head_and_the_projections_learn(config):
    """D5: with both layers at zero nothing but biases would ever move."""
    torch.manual_seed(0)
    head, block = ModulationHead(16), BlockModulation(config, 16)
    assert not head(torch.randn(1, 2, 16)).any()
    before = {name: p.clone() for m in (head, block) for name, p in m.named_parameters(prefix=type(m).__name__)}
    optimizer = torch.optim.AdamW([*head.parameters(), *block.parameters()], lr=1e-2, weight_decay=0.0)
    z = torch.randn(4, 3, 16)
    for _ in range(3):
        out = block(head(z), None)
        (out - z[..., : out.shape[-1]]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for m in (head, block):
        for name, parameter in m.named_parameters(prefix=type(m).__name__):
            assert not torch.equal(parameter, before[name]), name
    different = block(head(z), None).std(dim=1).mean()
    assert different > 1e-4  # it depends on the instance


def test_offsets_are_vectors_and_only_those_of_the_image():
    """D8: temb space moves each of the 6 d numbers by itself, and takes them from the AdaLN that they belong to."""
    network = open_gates(make_network(TINY, 2))
    refs, _, _, _, temb = block_inputs(network)
    block = network.transformer_blocks[0]
    row, text_row = torch.zeros(2, 1, 192), torch.zeros(2, 1, 192)
    moved, text = block._modulate(row, text_row, temb, None, refs)
    inside = moved[refs["cover"].any(1)]
    assert (inside.abs() > 1e-6).float().mean() > 0.95
    assert (inside.std(-1) > 1e-4).all()
    assert not moved[~refs["cover"].any(1)].any()
    assert text is text_row


def test_scalars_are_added_to_shifts_and_scales_and_multiply_gates():
    vectors = torch.arange(6.0).repeat_interleave(2)[None, None] + 1  # d = 2
    offsets = torch.tensor([[[10.0, 20.0, 0.5, 30.0, 40.0, -1.0], [0.0] * 6]])
    moved = move_scalars(vectors, offsets)
    assert moved[0, 0].tolist() == [11, 11, 22, 22, 4.5, 4.5, 34, 34, 45, 45, 0, 0]
    assert torch.equal(moved[:, 1:], vectors)


def test_the_text_half_of_the_twelve_scalars_is_used_and_none_is_added_to_the_embedding():
    """D8: six of the twelve move the text stream, by the mean over the picture's references."""
    network = open_gates(make_network(SCALAR, 2))
    refs, _, _, _, temb = block_inputs(network)
    block, ones = network.transformer_blocks[0], torch.ones(2, 1, 192)
    _, text = block._modulate(ones, ones, temb, None, refs)
    scalars = block.modulation(refs["shared"], None) * refs["alpha"].unsqueeze(-1)
    mean = torch.stack([scalars[0].mean(0), scalars[1, :2].mean(0)])[:, None, 6:]  # the last slot is padding
    torch.testing.assert_close(text, move_scalars(ones, mean))
    assert (text - ones).abs().max() > 1e-3


@pytest.mark.parametrize("config", [TINY, SCALAR])
def test_alpha_of_zero_stops_the_modulation_and_alpha_of_one_the_layout(config, monkeypatch):
    """R14(f), with layout_min 0."""
    inputs = make_inputs(config)
    network = open_gates(make_network(config, 2))

    def velocity(alpha, **without):
        def fixed(clip, boxes, depth):
            return torch.full(depth.shape, alpha)

        monkeypatch.setattr(network.alpha_predictor, "forward", fixed)
        for block in (*network.transformer_blocks, *network.single_transformer_blocks):
            if "layout" in without and block.layout_out is not None:
                monkeypatch.setattr(block.layout_out, "forward", torch.zeros_like)
            if "modulation" in without and hasattr(block, "modulation"):
                monkeypatch.setattr(
                    block.modulation,
                    "forward",
                    lambda shared, feedback, block=block: torch.zeros(
                        *shared.shape[:2], 12 if block.modulation.scalars is not None else shared.shape[-1]
                    ),
                )
        with torch.no_grad():
            found = network.predict(**inputs)["velocity"]
        monkeypatch.undo()
        return found

    torch.testing.assert_close(velocity(0.0), velocity(0.0, modulation=False))
    torch.testing.assert_close(velocity(1.0), velocity(1.0, layout=False))
    assert (velocity(0.0) - velocity(0.0, layout=False)).abs().max() > 1e-3
    assert (velocity(1.0) - velocity(1.0, modulation=False)).abs().max() > 1e-3
