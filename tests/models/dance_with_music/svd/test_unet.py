"""Stable Video Diffusion as StableAnimator uses it: a loop that equals diffusers', what is hung into it, counts."""

import copy
import fnmatch

import pytest
import torch
from torch import nn

from stagecoach.models.common.attention import Attend
from stagecoach.models.dance_with_music.config import SIZES
from stagecoach.models.dance_with_music.svd.unet import ATTENTIONS, ONE_KEY, TEMPORAL, VAE_SCALE, SvdDenoiser, svd_base
from stagecoach.models.trainable import matching_modules
from stagecoach.trainer.activation_checkpointing import apply_activation_checkpointing
from tests.models.dance_with_music.svd_inputs import diffusers_unet, make_denoiser, make_inputs


@pytest.fixture(scope="module")
def unet():
    return diffusers_unet()


def library(unet, inputs, dtype):
    """What diffusers' model makes of the same noisy latents and reference."""
    x, conditions = inputs["x"], inputs["conditions"]
    reference = (conditions["references"] / VAE_SCALE).expand(-1, x.shape[1], -1, -1, -1)
    ids = torch.tensor([[6.0, 127.0, 0.02]]).repeat(len(x), 1)
    with torch.no_grad():
        return (
            copy.deepcopy(unet)
            .to(dtype)(
                torch.cat([x, reference], dim=2).to(dtype), inputs["level"], conditions["embedding"].to(dtype), ids
            )
            .sample.float()
        )


def quiet(inputs):
    """No guidance, no face."""
    inputs["guidance"].zero_()
    inputs["conditions"]["identity_scale"] = 0.0
    return inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("frames", "side"), [(1, (8, 8)), (3, (8, 8)), (2, (7, 10))])
def test_without_guidance_and_face_it_is_diffusers_model_bit_for_bit(unet, dtype, frames, side):
    inputs = quiet(make_inputs(frames, side))
    with torch.no_grad():
        result = make_denoiser(unet, dtype)(**inputs)
    expected = library(unet, inputs, dtype)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)
    assert expected.std() > 0.01


@pytest.mark.parametrize("what", ["guidance", "face", "reference", "embedding"])
def test_each_condition_changes_the_output_of_its_sample_alone(unet, what):
    denoiser, inputs = make_denoiser(unet), make_inputs()
    with torch.no_grad():
        before = denoiser(**inputs)
        changed = make_inputs()
        {
            "guidance": changed["guidance"],
            "face": changed["tokens"],
            "reference": changed["conditions"]["references"],
            "embedding": changed["conditions"]["embedding"],
        }[what][1] *= -1
        after = denoiser(**changed)
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 1e-4


@pytest.mark.parametrize(("flag", "value"), [("reference_given", "references"), ("embedding_given", "embedding")])
def test_a_withheld_condition_is_zeros(unet, flag, value):
    denoiser, withheld, zeros = make_denoiser(unet), make_inputs(), make_inputs()
    withheld["conditions"][flag] = torch.tensor([True, False])
    zeros["conditions"][value][1] = 0
    with torch.no_grad():
        assert torch.equal(denoiser(**withheld), denoiser(**zeros))


def test_the_temporal_attentions_never_see_the_face(unet):
    """What the spatial adapters add is cut off; nothing else may carry the tokens."""
    denoiser, inputs = make_denoiser(unet), make_inputs()
    for name, parameter in denoiser.named_parameters():
        if name.endswith("transformer_blocks.0.attn2.to_out.0.weight") and "temporal" not in name:
            parameter.data.zero_()
    with torch.no_grad():
        first = denoiser(**inputs)
        inputs["tokens"] *= -2
        assert torch.equal(denoiser(**inputs), first)


def test_adapters_start_as_the_layers_own_projections(unet):
    denoiser = make_denoiser(unet)
    attn = denoiser.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    assert torch.equal(attn.processor.id_to_k.weight, attn.to_k.weight)
    assert torch.equal(attn.processor.id_to_v.weight, attn.to_v.weight)


def test_every_attention_goes_through_the_projects_kernels(unet, monkeypatch):
    calls = []

    def attend(self, q, k, v):
        calls.append(q.shape)
        return torch.zeros_like(q).flatten(2)

    monkeypatch.setattr(Attend, "forward", attend)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", lambda *a, **k: pytest.fail("another kernel"))
    denoiser = make_denoiser(unet)
    with torch.no_grad():
        denoiser(**make_inputs())
    transformers = [name for name, _ in denoiser.named_modules() if name.endswith("temporal_transformer_blocks.0")]
    assert len(calls) == 5 * len(transformers)


def selected(network, patterns):
    names = [name for pattern in patterns for name in matching_modules(network, pattern)]
    assert len(names) == len(set(names))
    return {f"{name}.{inner}" for name in names for inner, _ in network.get_submodule(name).named_parameters()}


@pytest.mark.parametrize(
    ("size", "counts"), [("svd-xt", (1_524_623_082 + 25_559_040, 795_994_256, 656_076_838)), ("tiny-svd", None)]
)
def test_the_patterns_name_the_published_sets(size, counts):
    """Section 4: the UNet, its attentions with the identity adapters, its temporal set."""
    config = SIZES[size]
    network = nn.ModuleDict({"denoising_unet": SvdDenoiser(config, svd_base(config.unet), torch.float32)})
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    attentions, temporal = selected(network, ATTENTIONS), selected(network, TEMPORAL)
    assert attentions == {name for name in sizes if "attentions" in name}
    assert temporal == {
        name
        for name in sizes
        for part in ("temporal_transformer_blocks", "temporal_res_block", "time_mixer", "time_pos_embed")
        if part in name
    }
    if counts is not None:
        assert (sum(sizes.values()), sum(map(sizes.get, attentions)), sum(map(sizes.get, temporal))) == counts


def test_exactly_the_parameters_that_read_one_key_get_no_gradient(unet):
    denoiser, inputs = make_denoiser(unet).requires_grad_(True), make_inputs()
    (denoiser(**inputs) ** 2).mean().backward()
    largest = {f"denoising_unet.{name}": float(p.grad.abs().max()) for name, p in denoiser.named_parameters()}
    idle = {name for name in largest if any(fnmatch.fnmatchcase(name, pattern) for pattern in ONE_KEY)}
    assert idle
    assert max(largest[name] for name in idle) < 1e-9
    # Of attentions only: at this size a norm has one channel per group, which takes out what is added before it.
    assert min(value for name, value in largest.items() if ".attn" in name and name not in idle) > 1e-9


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_recomputed_units_give_the_same_gradients(unet, policy):
    plain, again = make_denoiser(unet), make_denoiser(unet)
    assert apply_activation_checkpointing(again.recompute_units(), policy) == 12
    grads = []
    for denoiser in (plain, again):
        denoiser.requires_grad_(True)
        (denoiser(**make_inputs()) ** 2).mean().backward()
        grads.append([p.grad for p in denoiser.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
