"""Motion modules: long clips, published weights of 32 positions, and a start that changes nothing."""

import pytest
import torch
from diffusers import MotionAdapter
from diffusers.models.embeddings import SinusoidalPositionalEmbedding

from stagecoach.models.dance_with_music.champ.attention import Positions, position_table
from tests.models.dance_with_music.champ_inputs import (
    TINY,
    diffusers_unet,
    make_conditions,
    make_denoiser,
    make_network,
    make_noisy,
    open_zeros,
)


def test_the_table_is_the_published_one():
    expected = SinusoidalPositionalEmbedding(64, 160).pe
    assert torch.equal(position_table(64, 160), expected)
    assert not Positions(64, 160, "cpu").state_dict()


@pytest.mark.parametrize("frames", [33, 150])
def test_clips_longer_than_the_published_table_run(frames):
    (x, level), conditions = make_noisy(frames, (4, 4), b=1), make_conditions(frames, (4, 4), b=1)
    with torch.no_grad():
        out = make_denoiser(diffusers_unet(motion=True))(x, level, conditions, None, None, {})
    assert out.shape == x.shape
    assert out.isfinite().all()


def test_a_clip_beyond_the_table_is_refused_in_one_sentence():
    (x, level), conditions = make_noisy(161, (4, 4), b=1), make_conditions(161, (4, 4), b=1)
    with pytest.raises(ValueError, match=r"161 frames.*motion.max_frames is 160.*raise motion.max_frames"):
        make_denoiser(diffusers_unet(motion=True))(x, level, conditions, None, None, {})


def test_weights_with_32_positions_load():
    """Every parameter of diffusers' adapter has its place, under its name; its table is not wanted."""
    adapter = MotionAdapter(
        block_out_channels=TINY.unet.widths,
        motion_layers_per_block=TINY.unet.layers,
        motion_num_attention_heads=TINY.motion.heads,
        motion_norm_num_groups=TINY.unet.groups,
        motion_max_seq_length=32,
    )
    denoiser = make_denoiser(diffusers_unet(motion=True))
    mine = {name: p for name, p in denoiser.named_parameters() if ".motion_modules." in name}
    published = dict(adapter.named_parameters())
    assert {name: p.shape for name, p in mine.items()} == {name: p.shape for name, p in published.items()}
    assert denoiser.load_state_dict(published, strict=False).unexpected_keys == []


@torch.no_grad()
def test_fresh_modules_change_nothing_and_moved_ones_do():
    """Acceptance 1: the first step of stage C is the network of stage B, frame by frame."""
    (x, level), conditions = make_noisy(), make_conditions()
    expected = make_network(2).denoise(x, level, conditions)
    network = make_network(3)
    torch.testing.assert_close(network.denoise(x, level, conditions), expected, rtol=1e-5, atol=1e-5)
    assert (open_zeros(network).denoise(x, level, conditions) - expected).abs().max() > 1e-3


def test_frames_see_each_other_and_samples_do_not():
    (x, level), conditions = make_noisy(), make_conditions()
    denoiser = make_denoiser(diffusers_unet(motion=True))
    changed = x.clone()
    changed[1, 2] *= -1
    with torch.no_grad():
        difference = (
            (denoiser(changed, level, conditions, None, None, {}) - denoiser(x, level, conditions, None, None, {}))
            .abs()
            .amax((2, 3, 4))
        )
    assert difference[0].max() < 1e-5
    assert difference[1].min() > 1e-4
