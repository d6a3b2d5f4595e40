"""Stable Diffusion's UNet as CHAMP's denoiser: a loop that equals diffusers', what is hung into it, counts."""

import copy
import fnmatch

import pytest
import torch

from stagecoach.models.common.attention import Attend
from stagecoach.models.dance_with_music.champ.unet import ONE_KEY
from stagecoach.models.dance_with_music.config import SIZES
from stagecoach.trainer.activation_checkpointing import apply_activation_checkpointing
from tests.models.dance_with_music.champ_inputs import (
    TINY,
    WIDTH,
    diffusers_unet,
    make_conditions,
    make_denoiser,
    make_network,
    make_noisy,
    open_zeros,
)


@pytest.fixture(scope="module")
def unets():
    return {motion: diffusers_unet(motion) for motion in (False, True)}


def library(unet, x, level, clip, dtype):
    """What diffusers' model makes of the same noisy latents."""
    b, frames = x.shape[:2]
    unet, context = copy.deepcopy(unet).to(dtype), clip.to(dtype).repeat_interleave(frames, 0)
    with torch.no_grad():
        return (
            unet(x.flatten(0, 1).to(dtype), level.repeat_interleave(frames), context)
            .sample.unflatten(0, (b, frames))
            .float()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("frames", "side"), [(1, (8, 8)), (3, (8, 8)), (2, (5, 10))])
def test_with_nothing_hung_in_it_is_diffusers_model_bit_for_bit(unets, dtype, frames, side):
    (x, level), conditions = make_noisy(frames, side), make_conditions(frames, side)
    denoiser = make_denoiser(unets[False], dtype)
    with torch.no_grad():
        result = denoiser(x, level, conditions, None, None, {})
    expected = library(unets[False], x, level, conditions["embedding"], dtype)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)
    assert expected.std() > 0.01


def test_a_face_of_scale_zero_changes_nothing(unets):
    (x, level), conditions = make_noisy(), make_conditions() | {"identity_scale": 0.0}
    denoiser, tokens = make_denoiser(unets[False]), torch.randn(2, 4, TINY.unet.cross_dim)
    with torch.no_grad():
        plain = denoiser(x, level, conditions, None, None, {})
        assert torch.equal(denoiser(x, level, conditions, None, tokens, {}), plain)
        with_face = denoiser(x, level, conditions | {"identity_scale": 1.0}, None, tokens, {})
    assert (with_face - plain).abs().max() > 1e-3


def test_guidance_is_added_before_the_first_skip(unets):
    """As CHAMP: zero guidance is none, and what is added reaches the last up block too."""
    (x, level), conditions = make_noisy(), make_conditions()
    denoiser = make_denoiser(unets[False])
    added = torch.randn(2, 3, WIDTH, 8, 8)
    taken = []
    denoiser.up_blocks[-1].resnets[-1].register_forward_pre_hook(lambda _, args: taken.append(args[0][:, -WIDTH:]))
    with torch.no_grad():
        plain = denoiser(x, level, conditions, None, None, {})
        assert torch.equal(denoiser(x, level, conditions, torch.zeros_like(added), None, {}), plain)
        guided = denoiser(x, level, conditions, added, None, {})
    assert (guided - plain).abs().max() > 1e-3
    torch.testing.assert_close(taken[2] - taken[0], added.flatten(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", ["full", "selective"])
@pytest.mark.parametrize("stage", [2, 3])
def test_recompute_changes_no_loss_and_no_gradient(policy, stage):
    gradients = {}
    for chosen in ("none", policy):
        network = open_zeros(make_network(stage))
        wrapped = apply_activation_checkpointing(network.recompute_units(), chosen)
        x, level = make_noisy()
        loss = network.denoise(x, level, make_conditions()).square().mean()
        loss.backward()
        gradients[chosen] = {n: p.grad for n, p in network.named_parameters() if p.grad is not None} | {"loss": loss}
    # The guidance encoder; resnets: one per level on the way down, two in the middle, two per level up.
    assert wrapped == 1 + 2 * 1 + 2 + 2 * 2
    for name, value in gradients["none"].items():
        torch.testing.assert_close(gradients[policy][name], value, rtol=1e-5, atol=1e-8, msg=name)


def test_every_attention_uses_the_kernel_that_a_recipe_names(unets):
    """``set_backend`` reaches ``Attend`` modules only."""
    denoiser = make_denoiser(unets[True])
    attentions = [module for module in denoiser.modules() if hasattr(module, "to_q")]
    assert len(attentions) == 2 * 4 + 2 * 7
    for attention in attentions:
        assert any(isinstance(module, Attend) for module in attention.processor.modules())


def test_parameters_that_read_one_key_get_no_gradient_and_no_others():
    network = open_zeros(make_network(2))
    x, level = make_noisy()
    network.denoise(x, level, make_conditions()).square().mean().backward()
    sizes = {
        name: p.grad.abs().max().item()
        for name, p in network.named_parameters()
        if p.requires_grad and not name.startswith("m2p.")
    }
    idle = {name for name in sizes if any(fnmatch.fnmatchcase(name, pattern) for pattern in ONE_KEY)}
    assert len(idle) == 4 + 2 * 4  # in the reference net those that are not in its last up block
    assert all(sizes[name] < 1e-8 for name in idle)
    assert all(size > 1e-8 for name, size in sizes.items() if name not in idle)


def test_the_sizes_of_the_page():
    from stagecoach.models.dance_with_music.network import build_network

    config = SIZES["champ-sd15"]
    groups = {}
    for stage in (2, 3):
        for name, parameter in build_network(config, stage, "meta").named_parameters():
            kind = name.split(".")[0]
            kind += "/identity" if ".id_to_" in name else "/motion" if ".motion_modules." in name else ""
            row = groups.setdefault((stage, kind), [0, 0])
            row[0] += parameter.numel()
            row[1] += parameter.numel() * parameter.requires_grad
    trained = {key: row[1] for key, row in groups.items() if row[1]}
    assert groups[2, "denoising_unet"] == [859_520_964, 859_520_964]
    assert groups[2, "denoising_unet/identity"] == [19_169_280, 19_169_280]
    assert groups[2, "reference_unet"] == [859_520_964 - 12_164, 840_698_240]
    assert groups[3, "denoising_unet/motion"] == [453_209_280, 453_209_280]
    assert trained.keys() - {(2, "m2p")} == {
        (2, "denoising_unet"),
        (2, "denoising_unet/identity"),
        (2, "reference_unet"),
        (2, "guidance"),
        (2, "face_tokens"),
        (3, "denoising_unet/motion"),
    }
    assert sum(count for (stage, kind), count in trained.items() if stage == 2 and kind != "m2p") == 1_756_428_836
