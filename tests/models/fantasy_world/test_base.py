"""The base: parts that equal the whole, weights that come from where they should, errors that name the file."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from stagecoach.models.fantasy_world.config import SIZES
from stagecoach.models.fantasy_world.family import FantasyWorldFamily
from stagecoach.models.fantasy_world.network import build_network
from tests.models.fantasy_world.inputs import make_inputs

FAMILY = FantasyWorldFamily()


def reference(config, inputs, dtype):
    """The velocity that diffusers' own model gives."""
    model = WanTransformer3DModel.from_pretrained(config.base, torch_dtype=dtype)
    text, length = inputs["text"], config.backbone.text_length
    text = torch.nn.functional.pad(text, (0, 0, 0, length - text.shape[1]))
    latent, clip = inputs["latents_noisy"], None
    if config.image_to_video:
        latent, clip = torch.cat([latent, inputs["image_latent"]], 1), inputs["image_states"].to(dtype)
    with torch.no_grad():
        return model(latent.to(dtype), inputs["timestep"], text.to(dtype), clip).sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_stage_two_equals_the_frozen_base_bit_for_bit(config, make_network, dtype):
    inputs = make_inputs(config)
    network = make_network(config, 2, dtype)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    with torch.no_grad():
        video = network.predict(**inputs)["video"]
    expected = reference(config, inputs, dtype)
    assert torch.equal(video, expected)
    assert expected.float().std() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weights_have_the_values_and_dtypes_that_diffusers_gives_them(tiny, make_network, dtype):
    model = dict(WanTransformer3DModel.from_pretrained(tiny.base, torch_dtype=dtype).named_parameters())
    network = make_network(tiny, 2, dtype)
    frozen = {name: p for name, p in network.named_parameters() if not p.requires_grad}
    assert len(frozen) == len(model)
    pairs = {
        "pcb.1.attn1.to_q.weight": "blocks.1.attn1.to_q.weight",
        "irg.0.video_block.attention.norm2.weight": "blocks.2.norm2.weight",
        "irg.3.video_block.modulation.scale_shift_table": "blocks.5.scale_shift_table",
        "irg.3.video_block.feed_forward.ffn.net.2.bias": "blocks.5.ffn.net.2.bias",
        "stem.condition_embedder.time_proj.weight": "condition_embedder.time_proj.weight",
        "stem.condition_embedder.time_embedder.linear_1.bias": "condition_embedder.time_embedder.linear_1.bias",
        "out.scale_shift_table": "scale_shift_table",
    }
    for name, base_name in pairs.items():
        assert frozen[name].dtype == model[base_name].dtype
        assert torch.equal(frozen[name], model[base_name])
    assert {p.dtype for p in frozen.values()} == {p.dtype for p in model.values()}


@pytest.mark.parametrize("stage", [1, 2])
def test_geometry_blocks_start_as_fp32_copies_of_the_blocks_behind_the_split(tiny, make_network, stage):
    stored = load_file(Path(tiny.base) / "diffusion_pytorch_model.safetensors")
    network = make_network(tiny, stage, torch.bfloat16)
    block = network.irg[1].geo_block
    assert torch.equal(block.attention.attn2.to_v.weight, stored["blocks.3.attn2.to_v.weight"])
    assert torch.equal(block.modulation.scale_shift_table, stored["blocks.3.scale_shift_table"])
    assert not block.adapter.weight.any()
    assert all(p.dtype == torch.float32 and p.requires_grad for p in block.parameters())
    if stage == 2:
        video = network.irg[1].video_block.attention.attn1.to_q.weight
        assert block.attention.attn1.to_q.weight.data_ptr() != video.data_ptr()


def test_nothing_stays_on_the_meta_device(config, make_network):
    for stage in (1, 2):
        network = make_network(config, stage)
        left = [n for n, t in (*network.named_parameters(), *network.named_buffers()) if t.device.type == "meta"]
        assert left == []


def test_each_frozen_unit_is_placed_once_and_complete(config):
    network, placed = build_network(config, 2), []

    def on_loaded(unit):
        assert all(p.device.type == "cpu" for p in unit.parameters())
        placed.append(unit)

    FAMILY.load_base(network, config, "cpu", on_loaded)
    covered = [id(p) for unit in placed for p in unit.parameters()]
    assert len(covered) == len(set(covered))
    assert set(covered) == {id(p) for p in network.parameters() if not p.requires_grad}
    assert len(placed) == 1 + config.backbone.layers + 1


def test_the_hash_is_that_of_the_files_whatever_the_stage(tiny):
    def load(config, stage):
        return FAMILY.load_base(build_network(config, stage), config, "cpu")

    first = load(tiny, 1)
    assert load(tiny, 2) == first
    assert load(SIZES["tiny"], 1) == load(SIZES["tiny"], 2) != first


def copy_base(folder, target, change=None, config=None):
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file(change(stored) if change else stored, target / "diffusion_pytorch_model.safetensors")
    described = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**described, **(config or {})}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {n: t for n, t in s.items() if "blocks.4.ffn" not in n}, r"4 names \('blocks.4.ffn.*missing"),
        (
            lambda s: {**s, "blocks.0.lora.weight": torch.zeros(1)},
            r"diffusion_pytorch_model.safetensors: 1 names \('blocks.0.lora.weight'\) not in the model",
        ),
        (
            lambda s: {**s, "proj_out.bias": torch.zeros(3)},
            r"'proj_out.bias' has shape \[3\], the config expects \[64\]",
        ),
    ],
)
def test_a_wrong_weight_file_is_one_sentence_with_file_and_names(tiny, tmp_path, change, message):
    copy_base(Path(tiny.base), tmp_path, change)
    config = tiny.model_copy(update={"base": str(tmp_path)})
    with pytest.raises(ValueError, match=message) as error:
        FAMILY.load_base(build_network(config, 1), config, "cpu")
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_another_number_of_heads_changes_no_shape_and_is_found_in_the_config(tiny, tmp_path):
    copy_base(Path(tiny.base), tmp_path, config={"num_attention_heads": 2, "attention_head_dim": 64})
    config = tiny.model_copy(update={"base": str(tmp_path)})
    with pytest.raises(ValueError, match=r"config.json: num_attention_heads is 2, the recipe's backbone expects 4"):
        FAMILY.open_base(config)


def test_without_a_base_random_weights_must_be_asked_for():
    with pytest.raises(ValueError, match="base is not set"):
        FAMILY.open_base(SIZES["wan2.1-1.3b"])
