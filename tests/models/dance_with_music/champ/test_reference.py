"""The reference net: what it hands out is what diffusers' UNet computes, and the denoiser reads it in the same step."""

import pytest
import torch

from stagecoach.models.dance_with_music.champ.reference import reference_patterns
from stagecoach.models.trainable import matching_modules
from tests.models.dance_with_music.champ_inputs import (
    CROSS,
    TINY,
    diffusers_unet,
    make_conditions,
    make_network,
    make_noisy,
    make_reference,
    open_zeros,
)


def denoise(network, conditions):
    with torch.no_grad():
        return network.denoise(*make_noisy(), conditions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2])
def test_tokens_are_what_diffusers_self_attentions_take_in_at_timestep_zero(dtype, count):
    unet, conditions = diffusers_unet(), make_conditions(count=count)
    latents, clip = conditions["references"], conditions["embedding"]
    expected = {}
    unet.to(dtype)
    for name, module in unet.named_modules():
        if name.endswith("transformer_blocks.0.norm1"):
            key = name.removesuffix(".transformer_blocks.0.norm1")
            module.register_forward_hook(lambda *args, key=key: expected.update({key: args[2]}))
    with torch.no_grad():
        unet(latents.flatten(0, 1).to(dtype), torch.zeros(2 * count), clip.flatten(0, 1)[:, None].to(dtype))
        found = make_reference(unet, dtype)(latents, clip)
    assert found.keys() == expected.keys()
    assert len(found) == 4
    for name, tokens in found.items():
        rows = expected[name]
        assert torch.equal(tokens, rows.reshape(2, count * rows.shape[1], rows.shape[2])), name


def test_nothing_is_run_behind_the_last_self_attention():
    reference, calls = make_reference(diffusers_unet()), set()
    for name, module in reference.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.add(name))
    with torch.no_grad():
        reference(torch.randn(1, 1, 4, 8, 8), torch.randn(1, 1, CROSS))
    last = "up_blocks.1.attentions.1.transformer_blocks.0."
    assert {name for name in calls if name.startswith(last)} == {last + "norm1"}
    assert not hasattr(reference, "conv_out")


def test_what_trains_is_all_but_the_last_up_block():
    network = make_network()
    trained = {
        name
        for pattern in reference_patterns(TINY)
        for module in matching_modules(network, pattern)
        for name, _ in network.get_submodule(module).named_parameters(prefix=module)
    }
    frozen = {name for name, _ in network.named_parameters() if name.startswith("reference_unet.")} - trained
    assert all(name.startswith("reference_unet.up_blocks.1.") for name in frozen)
    assert not any(name.startswith("reference_unet.up_blocks.1.") for name in trained)


def test_all_that_trains_but_what_reads_one_key_gets_a_gradient_through_the_denoiser():
    """Also what lies before the frozen last up block, whose tokens carry it on."""
    network = open_zeros(make_network())
    network.denoise(*make_noisy(), make_conditions()).square().mean().backward()
    before = network.reference_unet.up_blocks[0].resnets[1].conv2.weight
    assert before.grad.abs().max() > 1e-6
    assert network.reference_unet.up_blocks[1].resnets[0].conv1.weight.grad is None


def test_another_reference_changes_the_output_of_its_own_sample_in_the_same_step():
    """Acceptance 5: not of the next one, as where banks are kept."""
    network, conditions, swapped = make_network(), make_conditions(), make_conditions()
    swapped["references"][1] *= -1
    difference = (denoise(network, swapped) - denoise(network, conditions)).abs().amax((1, 2, 3, 4))
    assert difference[1] > 1e-3
    assert difference[0] < 1e-6


def test_two_micro_steps_do_not_see_each_others_references():
    """Acceptance 5: the second of two micro-steps, before their common optimizer step, is what it is alone."""
    network, other = open_zeros(make_network()), open_zeros(make_network())

    def step(network, seed):
        loss = network.denoise(*make_noisy(seed=seed), make_conditions(seed=seed)).square().mean()
        loss.backward()
        return loss

    first = step(network, 3)
    second = step(network, 4)
    assert torch.equal(step(other, 4), second)
    alone = {name: p.grad.clone() for name, p in other.named_parameters() if p.grad is not None}
    other.zero_grad()
    assert torch.equal(step(other, 3), first)
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            both = alone[name] + dict(other.named_parameters())[name].grad
            torch.testing.assert_close(parameter.grad, both, rtol=1e-5, atol=1e-8, msg=name)


@pytest.mark.parametrize("count", [1, 2])
def test_a_sample_without_its_reference_is_as_if_there_were_none(count):
    """Acceptance 5: keys and values of its own in the reference's place are no reference at all."""
    network, conditions = make_network(), make_conditions(count=count)
    conditions["reference_given"] = torch.tensor([True, False])
    x, level = make_noisy()
    with torch.no_grad():
        out = network.denoise(x, level, conditions)
        tokens = network.face(conditions)
        none = network.denoising_unet(x, level, conditions, network.guide(conditions, (8, 8)), tokens, {})
    torch.testing.assert_close(out[1], none[1], rtol=0, atol=1e-5)
    assert (out[0] - none[0]).abs().max() > 1e-3


def test_the_reference_gets_no_gradient_of_a_sample_that_does_not_see_it():
    network, conditions = make_network(), make_conditions()
    conditions["references"].requires_grad_()
    conditions["reference_given"] = torch.tensor([True, False])
    network.denoise(*make_noisy(), conditions).square().mean().backward()
    size = conditions["references"].grad.abs().amax((1, 2, 3, 4))
    assert size[0] > 0
    assert size[1] == 0


def test_of_several_references_all_count_and_their_order_does_not():
    network, conditions = make_network(), make_conditions(count=2)
    conditions["embedding"] = conditions["embedding"][:, :1].repeat(1, 2, 1)
    out = denoise(network, conditions)
    turned = denoise(network, conditions | {"references": conditions["references"].flip(1)})
    torch.testing.assert_close(turned, out, rtol=0, atol=1e-5)
    for i in range(2):
        alone = conditions["references"][:, i : i + 1].repeat(1, 2, 1, 1, 1)
        assert (denoise(network, conditions | {"references": alone}) - out).abs().max() > 1e-3


def test_adain_moves_the_output_of_samples_with_a_reference_only():
    values = TINY.model_dump() | {"reference": {"count": 1, "adain": True}}
    plain, moved = make_network(), make_network(config=type(TINY).model_validate(values))
    conditions = make_conditions()
    conditions["reference_given"] = torch.tensor([True, False])
    difference = (denoise(moved, conditions) - denoise(plain, conditions)).abs().amax((1, 2, 3, 4))
    assert difference[0] > 1e-3
    assert difference[1] == 0
