"""LoRA: where it sits, which path runs it, how it is declared and exported."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from stagecoach.models.common.lora import lora_layers, lora_patterns, lora_state
from stagecoach.models.family import LossTerm, Schedule, StageSpec, Trainable
from stagecoach.models.movie_post_production.config import DOUBLE_TARGETS, SINGLE_TARGETS, SIZES, MoviePostConfig
from stagecoach.models.movie_post_production.family import MoviePostProductionFamily
from stagecoach.models.movie_post_production.stages import target_layers
from stagecoach.models.trainable import freeze
from stagecoach.trainer.subset import TrainableSubset
from tests.models.movie_post_production.inputs import make_inputs, make_network, open_gates
from tests.models.movie_post_production.test_base import reference

TINY = SIZES["tiny"]


def with_lora(second_ff=False, **lora):
    return MoviePostConfig.model_validate(
        {
            **TINY.model_dump(),
            "lora": {**TINY.lora.model_dump(), **lora},
            "layout": {**TINY.layout.model_dump(), "second_ff": second_ff},
        }
    )


EVERY = tuple(dict.fromkeys(DOUBLE_TARGETS + SINGLE_TARGETS))
CONFIGS = {
    "tiny": TINY,
    "every target": with_lora(second_ff=True, targets=EVERY),
    "global": with_lora(scope="global", targets=("to_q", "to_k", "to_v"), alpha=8),
}


def spec(config, extra=()):
    return StageSpec(
        1,
        "test",
        tuple(Trainable(p) for p in (*lora_patterns(target_layers(config)), *extra)),
        (LossTerm("fit", Schedule(1.0)),),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_patterns_name_every_lora_tensor_once_and_the_subset_takes_them_up(name):
    """D10: nothing freezes LoRA behind the declaration's back; the engine's module holds each tensor."""
    config = CONFIGS[name]
    network = make_network(config, 1)
    scales = freeze(network, spec(config))
    assert set(scales) == {n for n, _ in network.named_parameters() if ".lora_" in n}
    assert len(scales) == 2 * len(target_layers(config))
    subset = TrainableSubset(network)
    assert {id(p) for p in subset.parameters()} == {id(p) for p in network.parameters() if p.requires_grad}


def test_the_layout_scope_adapts_the_layout_blocks_and_the_global_one_all():
    blocks = {tuple(name.split(".")[:2]) for name, _ in lora_layers(make_network(TINY, 1))}
    assert blocks == {("transformer_blocks", "0"), ("transformer_blocks", "3"), ("single_transformer_blocks", "0")}
    assert len(target_layers(TINY)) == 6 + 6 + 3
    assert len(target_layers(CONFIGS["global"])) == 3 * (4 + 2)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_lora_tensor_gets_a_gradient(name):
    config = CONFIGS[name]
    network = open_gates(make_network(config, 1))
    network.predict(**make_inputs(config))["velocity"].square().mean().backward()
    for layer, module in lora_layers(network):
        for part in (module.lora_A, module.lora_B):
            assert part["default"].weight.grad.abs().max() > 0, layer


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_lora_is_there_in_every_stage_at_the_same_first_values(stage):
    """D12."""
    expected, network = make_network(TINY, 1).state_dict(), make_network(TINY, stage)
    names = [name for name in expected if ".lora_" in name]
    assert len(names) == 30
    assert all(torch.equal(network.state_dict()[name], expected[name]) for name in names)
    assert all(expected[name].any() == ("lora_A" in name) for name in names)


def test_the_base_path_does_not_run_the_lora_of_the_layout_branch():
    """The output without references is FLUX's regardless of what LoRA has learned, and requires_grad is left alone."""
    inputs = make_inputs(CONFIGS["every target"])
    inputs["instances"]["layout_given"][:] = False
    network = open_gates(make_network(CONFIGS["every target"], 1))
    flags = [p.requires_grad for p in network.parameters()]
    model = FluxTransformer2DModel(**TINY.backbone.diffusers())
    source = MoviePostProductionFamily().open_base(TINY)
    model.load_state_dict({name: source.read(name) for name in model.state_dict()})
    with torch.no_grad():
        velocity = network.predict(**inputs)["velocity"]
    assert torch.equal(velocity, reference(TINY, inputs, torch.float32, model))
    assert [p.requires_grad for p in network.parameters()] == flags


def test_an_exported_global_lora_gives_a_pipeline_the_output_of_training():
    """R14, done-when 4: scale and names as FluxPipeline reads them."""
    config = CONFIGS["global"]
    assert config.lora.alpha / config.lora.rank == 2
    inputs, network = make_inputs(config), open_gates(make_network(config, 1))
    inputs["instances"]["layout_given"][:] = False
    model = FluxTransformer2DModel(**config.backbone.diffusers())
    source = MoviePostProductionFamily().open_base(config)
    model.load_state_dict({name: source.read(name) for name in model.state_dict()})
    before = reference(config, inputs, torch.float32, model)
    pipeline = FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, model)
    pipeline.load_lora_weights(lora_state(network), adapter_name="moviepost")
    with torch.no_grad():
        velocity = network.predict(**inputs)["velocity"]
    after = reference(config, inputs, torch.float32, model)
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(after, velocity, atol=1e-5, rtol=1e-5)


def test_targets_that_would_never_run_are_refused():
    with pytest.raises(ValueError, match=r"'ff\.net\.2', which the layout branch runs only with layout\.second_ff"):
        with_lora(targets=("to_q", "ff.net.2"))
    with pytest.raises(ValueError, match=r"lora\.targets is \['to_x'\]"):
        with_lora(targets=("to_x",))
