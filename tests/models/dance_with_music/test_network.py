"""The networks of the phases: what they hold, where they start, and what their conditions do."""

import pytest
import torch

from stagecoach.models.dance_with_music.config import SIZES, DanceConfig
from stagecoach.models.dance_with_music.network import build_network
from stagecoach.models.dance_with_music.stages import make_stages
from stagecoach.models.trainable import trainable_names
from tests.models.dance_with_music.champ_inputs import TINY, make_conditions, make_network, make_noisy, open_zeros


def change(config, **values):
    return DanceConfig.model_validate(config.model_dump() | values)


PLANS = {"stages": {"joint": True}, "guidance": {"plan": "guidance"}, "late-m2p": {"m2p_in_motion": 0.01}}
CASES = [
    (backbone, plan, stage)
    for backbone in ("tiny", "tiny-svd")
    for plan in PLANS
    for stage in range(1, {"stages": 5, "guidance": 2, "late-m2p": 4}[plan])
]


@pytest.mark.parametrize(("size", "plan", "stage"), CASES)
def test_what_a_stage_trains_is_built_in_fp32_and_the_rest_of_the_base_in_the_networks_dtype(size, plan, stage):
    config = change(SIZES[size], **PLANS[plan])
    network = build_network(config, stage, "cpu", torch.bfloat16)
    trained = trainable_names(network, make_stages(config)[stage - 1])
    assert trained
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (name in trained), name
        frozen_base = parameter.is_meta and name not in trained
        assert parameter.dtype == (torch.bfloat16 if frozen_base else torch.float32), name


@pytest.mark.parametrize("size", ["tiny", "tiny-svd"])
def test_a_phase_holds_what_it_needs(size):
    parts = {
        stage: {name for name, _ in build_network(change(SIZES[size], joint=True), stage).named_children()}
        for stage in (1, 2, 3, 4)
    }
    rest = {"guidance", "face_tokens", "denoising_unet"} | ({"reference_unet"} if size == "tiny" else set())
    assert parts == {1: {"m2p"}, 2: {"m2p"} | rest, 3: {"m2p"} | rest, 4: {"m2p"} | rest}
    alone = build_network(change(SIZES[size], plan="guidance"), 1)
    assert {name for name, _ in alone.named_children()} == rest


def test_first_values_of_our_own_do_not_depend_on_the_stage():
    first, *others = (dict(build_network(change(TINY, joint=True), stage).named_parameters()) for stage in (2, 1, 3, 4))
    for other in others:
        for name, parameter in other.items():
            if not parameter.is_meta:
                assert torch.equal(parameter, first[name]), name


def test_motion_modules_come_with_stage_c():
    names = {stage: {name for name, _ in build_network(TINY, stage).named_parameters()} for stage in (2, 3)}
    assert names[2] < names[3]
    assert all(".motion_modules." in name for name in names[3] - names[2])


def plain(network, conditions, references=None):
    """The UNet with the reference's keys and values, or none, and nothing else of ours."""
    (x, level), off = make_noisy(), conditions | {"identity_scale": 0.0}
    references = network.reference_unet(conditions["references"], conditions["embedding"]) if references is None else {}
    return network.denoising_unet(x, level, off, None, None, references)


@torch.no_grad()
def test_at_its_start_the_denoiser_is_the_plain_unet_with_the_references_keys_and_values():
    """Acceptance 1: guidance, on or off, is nothing yet, and the identity fades in from nothing."""
    network, conditions = make_network(), make_conditions() | {"identity_scale": 0.0}
    out = network.denoise(*make_noisy(), conditions)
    assert torch.equal(out, plain(network, conditions))
    off = conditions | {"guidance_given": torch.zeros(2, dtype=torch.bool)}
    assert torch.equal(network.denoise(*make_noisy(), off), out)
    assert (out - plain(network, conditions, references={})).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("what", ["guidance", "embedding", "face"])
def test_a_withheld_condition_is_its_null_whatever_it_was(what):
    network, conditions, other = open_zeros(make_network()), make_conditions(), make_conditions(seed=5)
    conditions[f"{what}_given"] = torch.tensor([True, False])
    out = network.denoise(*make_noisy(), conditions)
    changed = network.denoise(*make_noisy(), conditions | {what: other[what]})
    assert torch.equal(changed[1], out[1])
    assert (changed[0] - out[0]).abs().max() > 1e-4


@torch.no_grad()
def test_the_condition_scale_multiplies_what_is_added():
    network, conditions = open_zeros(make_network()), make_conditions()
    once = network.guide(conditions, (8, 8))
    torch.testing.assert_close(network.guide(conditions | {"condition_scale": 1.5}, (8, 8)), 1.5 * once)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_same_modules_are_called_whatever_is_withheld(stage):
    """Else one rank would wait for ever."""
    calls = []
    network = open_zeros(make_network(stage))
    for name, module in network.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    found = []
    for given in (True, False):
        conditions = make_conditions()
        conditions |= {name: torch.full((2,), given) for name in conditions if name.endswith("_given")}
        calls.clear()
        with torch.no_grad():
            network.denoise(*make_noisy(), conditions)
        found.append(list(calls))
    assert found[0] == found[1]


def test_a_reference_of_another_size_is_refused_in_one_sentence():
    network, conditions = make_network(), make_conditions(side=(8, 6))
    with pytest.raises(ValueError, match="8 x 6 were given next to a clip of 8 x 8, expected the same"):
        network.denoise(*make_noisy(), conditions)


@torch.no_grad()
def test_in_bf16_it_is_near_fp32():
    network, conditions = open_zeros(make_network()), make_conditions()
    expected = network.denoise(*make_noisy(), conditions)
    half = network.bfloat16()
    half.dtype = half.denoising_unet.dtype = half.reference_unet.dtype = torch.bfloat16
    out = half.denoise(*make_noisy(), conditions)
    assert out.dtype == torch.float32
    assert (out - expected).std() < 0.03 * expected.std()
