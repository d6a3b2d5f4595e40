"""What must hold of the network as a whole: properties R14 and defects D1 to D25 of the design page."""

import pytest
import torch
from torch import nn

from stagecoach.models.common.lora import lora_patterns
from stagecoach.models.family import LossTerm, Schedule, StageSpec, Trainable
from stagecoach.models.movie_post_production.config import SIZES, LayoutConfig, ModulationConfig, MoviePostConfig
from stagecoach.models.movie_post_production.network import build_network
from stagecoach.models.movie_post_production.stages import target_layers
from stagecoach.models.trainable import freeze
from stagecoach.trainer.activation_checkpointing import apply_activation_checkpointing
from stagecoach.trainer.subset import TrainableSubset, WholeNetwork
from tests.models.movie_post_production.inputs import BOXES, make_inputs, make_network, open_gates

TINY = SIZES["tiny"]
SCALAR = TINY.model_copy(update={"modulation": ModulationConfig(space="scalar12")})
DEPTH = TINY.model_copy(update={"layout": LayoutConfig(double_blocks=(0, 3), overlap="depth", second_ff=True)})
LAYOUT = (
    "alpha_predictor",
    "null_references",
    "instance_encoder",
    "instance_text",
    "layout_head",
    "transformer_blocks.*.layout_out",
    "single_transformer_blocks.*.layout_out",
    *lora_patterns(target_layers(TINY)),
)
MODULATION = ("modulation_head", "transformer_blocks.*.modulation")
TRAINABLE = {1: LAYOUT, 2: LAYOUT + MODULATION, 3: ("transformer_blocks.*.feedback",)}


def spec(stage):
    return StageSpec(stage, "test", tuple(Trainable(p) for p in TRAINABLE[stage]), (LossTerm("fit", Schedule(1.0)),))


def loss(network, inputs):
    return network.predict(**inputs)["velocity"].square().mean()


def with_slots(inputs, choose):
    """``inputs`` with the references put through ``choose``."""
    instances = {name: choose(value) if value.ndim > 1 else value for name, value in inputs["instances"].items()}
    return inputs | {"instances": instances}


@pytest.mark.parametrize("config", [TINY, SCALAR, DEPTH])
def test_the_order_of_references_does_not_matter(config):
    """R14(d)."""
    network, inputs = open_gates(make_network(config, 3)), make_inputs(config)
    order = [2, 0, 1]
    with torch.no_grad():
        first = network.predict(**inputs)
        second = network.predict(**with_slots(inputs, lambda x: x[:, order]))
    torch.testing.assert_close(second["velocity"], first["velocity"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second["alpha"], first["alpha"][:, order])


@pytest.mark.parametrize("config", [TINY, SCALAR, DEPTH])
def test_padding_references_change_nothing(config):
    """R14(e), D9: neither output nor gradients, regardless of what stands in their slots."""
    network, inputs = open_gates(make_network(config, 3)), make_inputs(config)

    def pad(value):
        more = torch.full_like(value[:, :1], 3 if value.is_floating_point() else 1)
        return torch.cat([value, more, more], 1)

    padded = with_slots(inputs, pad)
    padded["instances"]["boxes"][:, 3:] = 0
    padded["instances"]["valid"][:, 3:] = False
    padded["instances"]["depth"][:, 3:] = 0
    found = []
    for given in (inputs, padded):
        network.zero_grad()
        prediction = network.predict(**given)
        (prediction["velocity"] ** 2).mean().backward()
        found.append((prediction, {n: p.grad for n, p in network.named_parameters() if p.grad is not None}))
    (first, gradients), (second, padded_gradients) = found
    torch.testing.assert_close(second["velocity"], first["velocity"], atol=1e-5, rtol=1e-5)
    assert torch.equal(second["active"][:, :3], first["active"])
    assert not second["active"][:, 3:].any()
    for name, gradient in gradients.items():
        torch.testing.assert_close(padded_gradients[name], gradient, atol=1e-6, rtol=1e-3, msg=name)


def test_a_references_content_reaches_the_tokens_of_its_box_in_the_first_layout_block():
    """R14(g), R14(h): and no others, not even of boxes that overlap it."""
    network, inputs = open_gates(make_network(TINY, 1)), make_inputs(TINY)
    seen = []
    network.transformer_blocks[0].register_forward_hook(lambda _, args, out: seen.append(out[0]))
    with torch.no_grad():
        network.predict(**inputs)
        inputs["instances"]["dino"][0, 0] *= -1
        inputs["instances"]["clip"][0, 0] *= -1
        network.predict(**inputs)
    changed = (seen[0] - seen[1]).abs().amax(-1) > 1e-6
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[:2, :2] = True  # the first box
    assert torch.equal(changed[0], inside.flatten())
    assert not changed[1].any()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_after_three_steps_all_that_trains_has_moved_and_nothing_else(stage):
    """R14(i), D3, D4, D5, D10: through the engine's module, with the freeze matrix of section 2.1."""
    network, inputs = make_network(TINY, stage), make_inputs(TINY)
    inputs["instances"]["clip_given"][0, 0] = inputs["instances"]["dino_given"][0, 1] = False
    if stage == 3:  # what earlier stages have trained
        open_gates_except(network, ".feedback.")
    scales = freeze(network, spec(stage))
    module = TrainableSubset(network)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        module(network, inputs, run=loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(scales)


def open_gates_except(network, part):
    kept = {name: p.detach().clone() for name, p in network.named_parameters() if part in name}
    open_gates(network)
    for name, value in kept.items():
        network.get_parameter(name).data = value


def test_layout_is_added_to_the_box_not_put_in_its_place():
    """D2: a W_b twice as large changes the tokens by twice as much."""
    network, inputs = open_gates(make_network(TINY, 1)), make_inputs(TINY)
    block, seen = network.transformer_blocks[0], []
    block.register_forward_hook(lambda _, args, out: seen.append(out[0]))
    with torch.no_grad():
        for scale in (0.0, 1.0, 2.0):
            network.predict(**inputs, layout_scale=scale)
    torch.testing.assert_close(seen[2] - seen[0], 2 * (seen[1] - seen[0]), atol=1e-5, rtol=1e-4)
    assert (seen[1] - seen[0]).abs().max() > 1e-3


def test_each_layout_block_has_a_map_of_its_own_and_there_is_one_layout_head():
    """D3, D4."""
    network = make_network(TINY, 3)
    maps = [
        block.layout_out
        for kind in (network.transformer_blocks, network.single_transformer_blocks)
        for block in kind
        if block.layout_out is not None
    ]
    assert len({id(m.weight) for m in maps}) == len(maps) == 3
    assert [name for name, _ in network.named_modules() if name.endswith("layout_head")] == ["layout_head"]


def test_no_parameter_comes_or_changes_shape_with_use_or_stage():
    """D11: what an earlier stage saved fits the later one's network, name by name."""
    shapes = [{n: p.shape for n, p in build_network(TINY, stage, "meta").named_parameters()} for stage in (1, 2, 3)]
    assert shapes[0].items() < shapes[1].items() < shapes[2].items()
    network = make_network(TINY, 3)
    before = list(network.state_dict())
    network.predict(**make_inputs(TINY))
    assert list(network.state_dict()) == before


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("policy", ["full", "selective"])
def test_recomputation_keeps_less_and_gives_the_same_gradients(stage, policy):
    """D16."""

    def run(policy):
        network, inputs, kept = open_gates(make_network(TINY, stage)), make_inputs(TINY), {}
        assert apply_activation_checkpointing(network.recompute_units(), policy) == (0 if policy == "none" else 6)

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = loss(network, inputs)
        value.backward()
        return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}, sum(kept.values())

    (expected, whole), (found, less) = run("none"), run(policy)
    assert less < 0.6 * whole
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_modules_are_called_as_often_for_any_number_of_references():
    """D20: nothing runs per reference, nor is anything left out where there is none."""
    calls, network = [], open_gates(make_network(TINY, 3))
    for name, module in network.named_modules():
        if next(module.parameters(), None) is not None:
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    found = []
    for boxes in (BOXES, [[[0.1, 0.1, 0.9, 0.9]] * 8] * 2, [[[0.0] * 4]] * 2):
        calls.clear()
        network.predict(**make_inputs(TINY, boxes))
        found.append(list(calls))
    assert found[0] == found[1] == found[2]
    assert all(f"transformer_blocks.{i}.layout_out" in found[2] for i in (0, 3))
    leaves = {
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and any(p.requires_grad for p in module.parameters())
    }
    assert leaves <= set(found[2])


def test_all_that_trains_gets_a_gradient_where_no_picture_has_a_reference():
    """Every rank takes part in every reduction, with zeros."""
    network = open_gates(make_network(TINY, 2))
    freeze(network, spec(2))
    loss(network, make_inputs(TINY, [[[0.0] * 4]] * 2)).backward()
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and not p.grad.any() for p in trained.values())


def test_withholding_the_layout_of_a_picture_is_having_no_references():
    network, inputs = open_gates(make_network(TINY, 2)), make_inputs(TINY)
    with torch.no_grad():
        whole = network.predict(**inputs)
        inputs["instances"]["layout_given"][0] = False
        half = network.predict(**inputs)
        inputs["instances"]["valid"][0] = False
        none = network.predict(**inputs)
    assert torch.equal(half["velocity"], none["velocity"])
    assert not torch.allclose(half["velocity"][0], whole["velocity"][0], atol=1e-3)
    torch.testing.assert_close(half["velocity"][1], whole["velocity"][1])
    assert half["active"].tolist() == [[False] * 3, [True, True, False]]


def test_a_missing_crop_is_the_learned_null_not_zeros():
    """D22 inside the network."""
    network, inputs = open_gates(make_network(TINY, 1)), make_inputs(TINY)
    inputs["instances"]["dino_given"][:] = False
    with torch.no_grad():
        first = network.predict(**inputs)["velocity"]
        inputs["instances"]["dino"].zero_()
        assert torch.equal(network.predict(**inputs)["velocity"], first)
        network.null_references.dino.add_(1.0)
        assert not torch.equal(network.predict(**inputs)["velocity"], first)


def test_vectors_of_another_width_and_odd_latents_are_refused():
    """D25."""
    network, inputs = make_network(TINY, 1), make_inputs(TINY)
    with pytest.raises(ValueError, match=r"a latent of 7 x 8 was given, expected even sizes"):
        network.predict(**inputs | {"latent": inputs["latent"][:, :, :7]})
    inputs["instances"]["clip"] = torch.zeros(2, 3, 512)
    with pytest.raises(ValueError, match=r"clip vectors of 512 numbers were given, expected instance\.clip_dim = 12"):
        network.predict(**inputs)


def test_pictures_of_other_shapes_go_through():
    network, inputs = open_gates(make_network(TINY, 3)), make_inputs(TINY)
    inputs["latent"] = torch.randn(2, 16, 4, 12)
    assert network.predict(**inputs)["velocity"].shape == (2, 16, 4, 12)


def test_first_values_depend_on_the_name_only():
    first, again = build_network(TINY, 1), build_network(TINY, 3)
    for name, parameter in first.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, again.get_parameter(name)), name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_engines_module_owns_all_that_trains(stage):
    network = make_network(TINY, stage)
    scales = freeze(network, spec(stage))
    subset = TrainableSubset(network)
    assert sum(p.numel() for p in subset.parameters()) == sum(network.get_parameter(n).numel() for n in scales)
    assert {id(p) for p in WholeNetwork(network).parameters()} > {id(p) for p in subset.parameters()}


@pytest.mark.parametrize(
    "change",
    [
        {"double_blocks": [4]},
        {"double_blocks": [3, 0]},
        {"double_blocks": []},
        {"double_blocks": [0], "single_blocks": []},
    ],
)
def test_layout_blocks_that_are_not_there_are_refused(change):
    with pytest.raises(ValueError, match=r"layout\.(double|single)_blocks is"):
        MoviePostConfig.model_validate({**TINY.model_dump(), "layout": change})
