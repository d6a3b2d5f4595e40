"""Parameter counts on the meta device against section 4 of the design page."""

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stagecoach.models.movie_post_production.config import (
    DOUBLE_TARGETS,
    SINGLE_TARGETS,
    SIZES,
    FeedbackConfig,
    InstanceConfig,
    ModulationConfig,
)
from stagecoach.models.movie_post_production.layout.instance_tokens import AlphaPredictor, InstanceEncoder
from stagecoach.models.movie_post_production.network import build_network

FULL = SIZES["flux-dev"]
QKV, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
OUTS = ("to_out.0", "to_add_out")


def counts(config, stage):
    """Parameters by module of ours, ``lora`` and ``base``."""
    found = {}
    for name, parameter in build_network(config, stage, "meta").named_parameters():
        parts = name.split(".")
        ours = [part for part in ("layout_out", "modulation", "feedback") if part in parts]
        if ".lora_" in name:
            key = "lora"
        elif parameter.requires_grad:
            key = ours[0] if ours else parts[0]
        else:
            key = "base"
        found[key] = found.get(key, 0) + parameter.numel()
    return found


def change(config, **parts):
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=value) for name, value in parts.items()}
    )


def size(module):
    return sum(p.numel() for p in module.parameters())


def test_the_design_has_the_counts_of_the_page():
    """D3, D4, D11: all of it is there when the optimizer is made, a W_b per layout block, one layout head."""
    first, second, third = (counts(FULL, stage) for stage in (1, 2, 3))
    assert first["base"] == second["base"] == third["base"] == 11_901_408_320
    assert first["alpha_predictor"] == 198_145
    assert first["instance_encoder"] == 787_456 + 15_740_928
    assert first["layout_head"] == 9_440_256
    assert first["layout_out"] == 75_522_048
    assert first["lora"] == 35_389_440
    listed = ("alpha_predictor", "instance_encoder", "layout_head", "layout_out")
    assert sum(first[name] for name in listed) == 101_688_833
    assert sum(first[name] for name in (*listed, "lora")) == 137_078_273
    assert {name: second[name] for name in first} == first
    assert second["modulation_head"] == 18_880_512
    assert second["modulation"] == 179_364_864
    assert second["modulation_head"] + second["modulation"] == 198_245_376
    assert {name: third[name] for name in second} == second
    assert third["feedback"] == 1_769_472
    # Next to the page's modules: learned nulls (section 1.3) and the text of the objects.
    assert first["null_references"] == 768 + 1024
    assert first["instance_text"] == 768 * 3072 + 3072
    assert set(third) == {
        *listed,
        "lora",
        "base",
        "modulation_head",
        "modulation",
        "feedback",
        "null_references",
        "instance_text",
    }


def test_the_switches_have_the_counts_of_the_page():
    assert counts(change(FULL, feedback={"kind": "full"}), 3)["feedback"] == 169_924_608
    assert counts(change(FULL, modulation={"rank": 128}), 2)["modulation"] == 14_942_208
    assert counts(change(FULL, modulation={"space": "scalar12"}), 2)["modulation"] == 179_364_864 + 700_644
    assert FeedbackConfig().rank == 16
    assert ModulationConfig().rank is None


@pytest.mark.parametrize(
    ("scope", "targets", "rank", "expected"),
    [
        ("global", QKV, 128, 134_479_872),
        ("global", QKV + ADDED, 128, 179_306_496),
        ("global", QKV + ADDED + OUTS, 128, 209_190_912),
        ("layout_branch", QKV, 128, 18_874_368),
        ("layout_branch", DOUBLE_TARGETS + SINGLE_TARGETS[3:], 128, 118_358_016),
        ("layout_branch", DOUBLE_TARGETS + SINGLE_TARGETS[3:], 4, 3_698_688),
    ],
)
def test_lora_has_the_counts_of_the_page(scope, targets, rank, expected):
    config = change(FULL, layout={"second_ff": True}, lora={"scope": scope, "targets": targets, "rank": rank})
    assert counts(config, 1)["lora"] == expected


def test_clip_of_512_numbers_has_the_counts_of_the_page():
    """D25."""
    own = InstanceConfig(clip_dim=512)
    with torch.device("meta"):
        assert size(AlphaPredictor(own)) == 132_609
        encoder = InstanceEncoder(own, 3072)
    assert size(encoder.clip_projection) == 525_312
    assert size(encoder.fusion) == 15_740_928


def test_the_backbones_parts_have_the_counts_of_the_page():
    with torch.device("meta"):
        model = FluxTransformer2DModel(**FULL.backbone.diffusers())
    assert size(model) == 11_901_408_320
    assert size(model.transformer_blocks[0]) == 339_831_296
    assert size(model.single_transformer_blocks[0]) == 141_591_808
    assert size(model.time_text_embed) == 32_262_144
