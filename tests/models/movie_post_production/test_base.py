"""The base: an own loop that equals diffusers' model, weights that come from where they should."""

import json
import shutil

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file

from stagecoach.models.movie_post_production.config import SIZES
from stagecoach.models.movie_post_production.family import MoviePostProductionFamily
from stagecoach.models.movie_post_production.network import build_network, grid_ids
from tests.models.movie_post_production.inputs import BOXES, make_inputs, make_network, open_gates

FAMILY = MoviePostProductionFamily()
TINY = SIZES["tiny"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A saved transformer; gains and biases are random too, so that none can be mixed up unseen."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = FluxTransformer2DModel(**TINY.backbone.diffusers())
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("flux")
    model.save_pretrained(path)
    return path


@pytest.fixture
def config(folder):
    return TINY.model_copy(update={"base": str(folder), "allow_random_init": False})


def packed(latent):
    b, c, h, w = latent.shape
    return FluxPipeline._pack_latents(latent, b, c, h, w)


def reference(config, inputs, dtype, model=None):
    """The velocity that diffusers' own model gives."""
    model = model or FluxTransformer2DModel.from_pretrained(config.base, torch_dtype=dtype)
    latent, (h, w) = inputs["latent"].to(dtype), config.image.grid
    with torch.no_grad():
        tokens = model(
            packed(latent),
            inputs["t5"].to(dtype),
            inputs["pooled"].to(dtype),
            inputs["t"],
            FluxPipeline._prepare_latent_image_ids(1, h, w, "cpu", dtype),
            torch.zeros(inputs["t5"].shape[1], 3),
            inputs["guidance"],
        ).sample
    return FluxPipeline._unpack_latents(tokens, 16 * h, 16 * w, 8).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("cast", [False, True])
def test_new_adapters_leave_flux_as_it_is_bit_for_bit(config, dtype, stage, cast):
    """R14(a), D2: with an adapter at its initial values the output is FLUX's; ``cast`` as an engine in bf16 does."""
    inputs, network = make_inputs(config), make_network(config, stage, dtype)
    if cast:
        network.to(dtype)
    with torch.no_grad():
        velocity = network.predict(**inputs)["velocity"]
    expected = reference(config, inputs, dtype)
    assert velocity.dtype == torch.float32
    assert velocity.shape == inputs["latent"].shape
    assert torch.equal(velocity, expected)
    assert expected.std() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("second_ff", [False, True])
@pytest.mark.parametrize("space", ["temb", "scalar12"])
@pytest.mark.parametrize("how", ["padding", "withheld"])
def test_without_references_trained_adapters_leave_flux_as_it_is_bit_for_bit(config, dtype, second_ff, space, how):
    """R14(a): no reference, or all withheld, regardless of what the adapters have learned."""
    config = config.model_copy(
        update={
            "layout": config.layout.model_copy(update={"second_ff": second_ff}),
            "modulation": config.modulation.model_copy(update={"space": space}),
        }
    )
    inputs = make_inputs(config, BOXES if how == "withheld" else [[[0.0] * 4], [[0.0] * 4]])
    if how == "withheld":
        inputs["instances"]["layout_given"][:] = False
    network = open_gates(make_network(config, 3, dtype))
    with torch.no_grad():
        velocity = network.predict(**inputs)["velocity"]
    assert torch.equal(velocity, reference(config, inputs, dtype))


def test_the_bit_for_bit_tests_can_fail(config):
    inputs = make_inputs(config)
    with torch.no_grad():
        velocity = open_gates(make_network(config, 3)).predict(**inputs)["velocity"]
    assert (velocity - reference(config, inputs, torch.float32)).abs().max() > 1e-2


def test_text_has_no_positions(config):
    """D18: position ids of the text are zeros, so tokens of the text may change places."""
    inputs, network = make_inputs(config), open_gates(make_network(config, 1))
    with torch.no_grad():
        first = network.predict(**inputs)["velocity"]
        inputs["t5"] = inputs["t5"].flip(1)
        torch.testing.assert_close(network.predict(**inputs)["velocity"], first)


def test_ids_of_image_tokens_are_the_pipelines():
    assert torch.equal(grid_ids(3, 5), FluxPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weights_are_the_files_and_nothing_stays_on_the_meta_device(config, folder, dtype):
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    network = make_network(config, 3, dtype)
    frozen = {name.replace(".base_layer", ""): p for name, p in network.named_parameters() if not p.requires_grad}
    assert set(frozen) == set(stored)
    assert all(p.dtype == dtype and torch.equal(p, stored[name].to(dtype)) for name, p in frozen.items())
    assert all(p.dtype == torch.float32 for p in network.parameters() if p.requires_grad)
    assert all(t.device.type == "cpu" for t in (*network.parameters(), *network.buffers()))


def test_each_frozen_weight_is_placed_once_and_none_of_ours(config):
    network, placed = build_network(config, 3), []

    def on_loaded(unit):
        assert all(p.device.type == "cpu" for p in unit.parameters())
        placed.append(unit)

    FAMILY.load_base(network, config, "cpu", on_loaded)
    covered = [id(p) for unit in placed for p in unit.parameters()]
    assert len(covered) == len(set(covered))
    assert set(covered) == {id(p) for p in network.parameters() if not p.requires_grad}


def test_the_hash_does_not_depend_on_the_stage_but_on_the_weights(config):
    def load(config, stage):
        return FAMILY.load_base(build_network(config, stage), config, "cpu")

    assert load(config, 1) == load(config, 3)
    assert load(TINY, 1) != load(config, 1)


def test_another_model_is_refused_by_name(config, folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"num_attention_heads": 4, "attention_head_dim": 8}))
    with pytest.raises(ValueError, match=r"other/config\.json: attention_head_dim is 8, .* expects 16"):
        FAMILY.open_base(config.model_copy(update={"base": str(other)}))
    with pytest.raises(ValueError, match="base is not set"):
        FAMILY.open_base(TINY.model_copy(update={"allow_random_init": False}))
    (other / "config.json").write_text(json.dumps(settings))
    deeper = config.backbone.model_copy(update={"single_blocks": 3})
    with pytest.raises(ValueError, match=r"num_single_layers is 2, .* expects 3"):
        FAMILY.open_base(config.model_copy(update={"base": str(other), "backbone": deeper}))


def test_the_tiny_profile_of_the_design_page_has_its_parameters():
    """Section 10: 207,312 parameters with four latent channels."""
    backbone = TINY.backbone.model_copy(update={"latent_channels": 4})
    with torch.device("meta"):
        model = FluxTransformer2DModel(**backbone.diffusers())
    assert sum(p.numel() for p in model.parameters()) == 207_312
