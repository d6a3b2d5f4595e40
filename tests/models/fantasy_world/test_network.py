"""The network as a whole: what runs in which stage, what depends on what, and that all of it learns."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch.utils.checkpoint import checkpoint

from stagecoach.models.family import Progress
from stagecoach.models.fantasy_world.backbone import SplitWanBlock
from stagecoach.models.fantasy_world.config import SPECIAL_TOKENS
from stagecoach.models.fantasy_world.network import build_network
from tests.models.fantasy_world.fakes import make_batch
from tests.models.fantasy_world.inputs import make_inputs, open_gates

STAGES = (1, 2)


def total(result):
    """Some number that depends on every output."""
    parts = [v for k, v in result.items() if k != "poses"] + result["poses"]
    return sum((p.float() * torch.arange(1, p.numel() + 1).view(p.shape).cos()).mean() for p in parts)


def gradients(network, inputs):
    network.zero_grad()
    total(network.predict(**inputs)).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_stage_one_builds_and_calls_no_video_block_behind_the_split(config, make_network):
    network = make_network(config, 1)
    blocks = [m for m in network.modules() if isinstance(m, (WanTransformerBlock, SplitWanBlock))]
    geometry = [layer.geo_block for layer in network.irg]
    assert [b for b in blocks if b not in geometry] == list(network.pcb)
    assert len(network.pcb) == config.split
    assert not hasattr(network, "out")
    assert "video" not in network.predict(**make_inputs(config))


def test_stage_one_keeps_no_graph_of_the_frozen_blocks(config, make_network):
    network, flags = make_network(config, 1), []
    for block in network.pcb:
        block.register_forward_hook(lambda module, args, out: flags.append(out.requires_grad))
    network.predict(**make_inputs(config))
    assert flags == [False] * config.split


def test_outputs_have_the_documented_shapes(config, make_network):
    result = make_network(config, 2).predict(**make_inputs(config, batch=2, kept=3))
    clip = config.clip
    shapes, dense = {n: tuple(v.shape) for n, v in result.items() if n != "poses"}, (2, 3, clip.height, clip.width)
    assert shapes == {
        "video": (2, 16, *clip.latent),
        "depth": dense,
        "depth_confidence": dense,
        "points": (*dense, 3),
        "points_confidence": dense,
    }
    assert [tuple(p.shape) for p in result["poses"]] == [(2, clip.frames, 9)] * config.camera_head.iterations


def test_own_modules_start_alike_in_both_stages(config):
    first, second = (build_network(config, stage).state_dict() for stage in STAGES)
    own = [name for name in first if first[name].device.type != "meta"]
    assert {name.split(".")[0] for name in own} >= {"latent_bridge", "special_tokens", "dpt", "camera_head"}
    for name in own:
        assert torch.equal(first[name], second[name]), name


def test_what_stage_one_trains_has_its_name_in_stage_two(config):
    first, second = (
        {name: p.shape for name, p in build_network(config, stage, "meta").named_parameters() if p.requires_grad}
        for stage in STAGES
    )
    assert first.items() <= second.items()
    new = {name.split(".")[2 if name.startswith("irg") else 0] for name in second.keys() - first}
    assert new - {"pose_encoder"} == {"camera_adapters", "cross_attention"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_of_two_equals_two_batches_of_one(config, make_network, stage):
    network = make_network(config, stage)
    open_gates(network)
    inputs = make_inputs(config, batch=2)
    with torch.no_grad():
        both = network.predict(**inputs)
        for b in range(2):
            one = network.predict(**{name: value[b : b + 1] for name, value in inputs.items()})
            for name, value in both.items():
                pairs = zip(value, one[name], strict=True) if name == "poses" else [(value, one[name])]
                for left, right in pairs:
                    torch.testing.assert_close(left[b : b + 1], right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_every_trainable_tensor_has_a_gradient_by_step_three(config, make_network, stage):
    network = make_network(config, stage)
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    frozen = {name: p.clone() for name, p in network.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-3)
    moved = set()
    for step in range(3):
        optimizer.zero_grad()
        batch = make_batch(2, config, first_uid=2 * step, stage=stage)
        inputs = make_inputs(config, seed=step)
        batch |= {name: inputs[name] for name in ("image_latent", "clip") if name in inputs}
        losses = network(batch, Progress(step=step, total_steps=3, stage=stage, seed=0))["losses"]
        sum(loss.mean() for loss in losses.values()).backward()
        moved |= {name for name, p in trainable.items() if p.grad is not None and p.grad.any()}
        optimizer.step()
    assert sorted(trainable.keys() - moved) == []
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)
    for name, value in frozen.items():
        assert torch.equal(network.get_parameter(name), value), name


def test_in_stage_two_the_video_loss_reaches_the_first_adapter_and_the_geometry_branch(config, make_network):
    network = make_network(config, 2)
    open_gates(network)
    network.predict(**make_inputs(config))["video"].square().mean().backward()
    for module in (network.camera_adapters[0], network.latent_bridge, network.irg[0].geo_block):
        assert all(p.grad is not None and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("stage", STAGES)
def test_a_withheld_camera_changes_nothing_by_its_value(config, make_network, stage):
    network = make_network(config, stage)
    open_gates(network)
    inputs = make_inputs(config, batch=1)
    moved = inputs["extrinsics"] + torch.tensor([0.0, 0, 0, 0.5])
    with torch.no_grad():

        def depth(given, cameras):
            changed = {**inputs, "camera_given": torch.tensor([given]), "extrinsics": cameras}
            return network.predict(**changed)["depth"]

        assert torch.equal(depth(False, inputs["extrinsics"]), depth(False, moved))
        assert not torch.allclose(depth(True, inputs["extrinsics"]), depth(True, moved))


@pytest.mark.parametrize("given", [True, False])
def test_a_withheld_camera_skips_no_module(config, make_network, given):
    network = make_network(config, 2)
    inputs = {**make_inputs(config), "camera_given": torch.tensor([given, given])}
    found = gradients(network, inputs)
    assert all(network.get_parameter(n).requires_grad is (n in found) for n, _ in network.named_parameters())


@pytest.mark.parametrize("stage", STAGES)
def test_recompute_changes_no_gradient(config, make_network, stage):
    network, inputs = make_network(config, stage), make_inputs(config)
    open_gates(network)
    expected = gradients(network, inputs)
    units = network.recompute_units()
    assert len(set(map(id, units))) == len(units)
    for unit in units:

        def recomputed(*args, forward=unit.forward):
            return checkpoint(forward, *args, use_reentrant=False)

        unit.forward = recomputed
    found = gradients(network, inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_leaves_are_called_once_with_positional_tensors_of_which_one_has_a_gradient(config, make_network, stage):
    network, calls = make_network(config, stage), {}

    def note(module, args, kwargs):
        assert not kwargs
        assert all(isinstance(arg, torch.Tensor) for arg in args)
        assert any(arg.requires_grad for arg in args)
        calls[module] = calls.get(module, 0) + 1

    leaves = network.leaf_modules()
    assert len(leaves) == (stage + (1 if config.geometry == "wan" else 2)) * config.irg_layers
    for leaf in leaves:
        assert all(p.requires_grad for p in leaf.parameters())
        leaf.register_forward_pre_hook(note, with_kwargs=True)
    network.predict(**make_inputs(config))
    assert calls == dict.fromkeys(leaves, 1)


@pytest.mark.parametrize("stage", STAGES)
def test_every_trainable_parameter_is_in_a_module_that_trains_whole(config, stage):
    network = build_network(config, stage, "meta")
    for module in network.modules():
        flags = [p.requires_grad for p in module.parameters()]
        own = [p.requires_grad for p in module.parameters(recurse=False)]
        assert not any(own) or all(flags)


@pytest.mark.parametrize("stage", STAGES)
def test_the_forward_runs_on_the_meta_device(config, stage):
    network = build_network(config, stage, "meta")
    inputs = {name: value.to("meta") for name, value in make_inputs(config).items()}
    assert network.predict(**inputs)["depth"].device.type == "meta"


def test_attention_covers_as_many_tokens_as_the_layout_says(config, make_network):
    network, lengths = make_network(config, 2), set()
    network.irg[0].cross_attention.attend.register_forward_pre_hook(
        lambda module, args: lengths.add((args[0].shape[1], args[1].shape[1]))
    )
    network.predict(**make_inputs(config))
    n, g = config.clip.tokens, config.clip.tokens + SPECIAL_TOKENS * config.clip.grid[0]
    assert lengths == {(n, g), (g, n)}


def test_text_that_is_too_long_and_odd_latents_are_refused(config, make_network):
    network, inputs = make_network(config, 1), make_inputs(config)
    length, dim = config.backbone.text_length, config.backbone.text_dim
    with pytest.raises(ValueError, match=f"text of {length + 1} tokens was given, expected at most {length}"):
        network.predict(**{**inputs, "text": torch.zeros(2, length + 1, dim)})
    _, h, w = config.clip.latent
    with pytest.raises(ValueError, match=f"latent of {h} x {w - 1} was given"):
        network.predict(**{**inputs, "latents_noisy": inputs["latents_noisy"][..., : w - 1]})


def test_camera_tokens_of_different_latent_frames_can_carry_different_poses(config, make_network):
    """All attention of the wan design is over the whole clip; without a mark of time every frame after the first had
    the very same camera token, and so the very same poses."""
    network = make_network(config, 1, torch.float32)
    inputs = make_inputs(config)
    with torch.no_grad():
        poses = network.predict(**inputs)["poses"][-1]
    assert config.clip.latent[0] >= 3
    assert not torch.allclose(poses[:, 1:5], poses[:, 5:9], atol=1e-5)
