"""What the trainer asks of the family: base, validation, previews, and how small it is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stagecoach.data.encoding.pipeline_folder import PipelineFolder
from stagecoach.data.format.schema import Field
from stagecoach.data.stable_diffusion_3.builder import FamilyBuilder
from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.models.common.lora import lora_layers
from stagecoach.models.common.pictures import TITLE
from stagecoach.models.family import Progress
from stagecoach.models.stable_diffusion_3.config import SIZES, StableDiffusion3Config
from tests.models.stable_diffusion_3.conftest import FAMILY

ROOT = Path(__file__).parents[3]
HELD_OUT = Progress(3, 10, 1, 0, training=False)


def test_the_family_is_as_small_as_its_document_says_and_shown_there_as_it_is():
    text = (ROOT / "docs" / "adding_a_family.md").read_text()
    sources = {
        path: path.read_text() for folder in ("data", "models") for path in (ROOT / folder / FAMILY.name).rglob("*.py")
    }
    counts = {str(path.relative_to(ROOT)): len(source.splitlines()) for path, source in sources.items() if source}
    assert sum(counts.values()) <= 150
    assert f"{sum(counts.values())} lines" in text
    for name, count in counts.items():
        assert f"`{name}` | {count} |" in text
    shown = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert shown
    for block in shown:
        assert any(block in source for source in sources.values()), block


def test_published_weights_are_read_by_their_own_names_and_another_model_is_refused(config, tiny):
    assert str(tiny.base) in FAMILY.check_base(config)
    wrong = config.backbone.model_copy(update={"num_layers": 3})
    with pytest.raises(ValueError, match="num_layers is 2, the recipe's backbone expects 3"):
        FAMILY.check_base(config.model_copy(update={"backbone": wrong}))
    with pytest.raises(ValueError, match="base is not set"):
        FAMILY.check_base(StableDiffusion3Config())
    with pytest.raises(ValueError, match=r"_class_name is 'SD3Transformer2DModel', expected AutoencoderKL"):
        FAMILY.check_base(config.model_copy(update={"vae": str(tiny.base / "transformer")}))


def test_lora_outside_of_the_attentions_is_refused_with_the_recipe():
    with pytest.raises(ValueError, match=r"lora\.targets is \['ff\.net\.2'\], expected at least one of \['add_k_proj'"):
        StableDiffusion3Config.model_validate({"lora": {"targets": ["ff.net.2"]}})
    with pytest.raises(ValueError, match="each once"):
        StableDiffusion3Config.model_validate({"lora": {"targets": ["to_q", "to_q"]}})


def test_the_position_embedding_is_the_published_one(network, tiny):
    """A buffer, which no parameter list holds."""
    expected = tiny.pipeline().transformer.pos_embed.pos_embed
    assert network.transformer.pos_embed.pos_embed.equal(expected)


@torch.no_grad()
def test_the_baseline_of_validation_is_the_base_alone(network, batch):
    found = FAMILY.validate(network, batch, HELD_OUT, {})
    assert float(found["val_flow_loss"][1]) == 4 * 3
    for _, layer in lora_layers(network):
        layer.lora_B["default"].weight.zero_()
    alone = FAMILY.validate(network, batch, HELD_OUT, {})
    assert alone["val_flow_loss"][0].equal(found["val_flow_loss_baseline"][0])
    assert not alone["val_flow_loss"][0].equal(found["val_flow_loss"][0])


def test_medium_is_the_published_size():
    """2,028 M parameters in the transformer; the LoRA of rank 16 has its eight layers in 24 blocks."""
    network = FAMILY.build(SIZES["sd3-medium"], 1, "meta", torch.bfloat16)
    count = {"lora": 0, "base": 0}
    for name, parameter in network.named_parameters():
        count["lora" if "lora_" in name else "base"] += parameter.numel()
    assert count["base"] == pytest.approx(2.028e9, rel=0.02)
    assert count["lora"] == (24 * 8 - 2) * 16 * 2 * 1536


@torch.no_grad()
def test_a_preview_shows_each_picture_next_to_that_of_its_caption(network, config, batch, tiny):
    named = batch | {"key": ["a", "b", "c"]}
    assert FAMILY.preview(network, named, HELD_OUT) == {}
    helpers = FAMILY.helpers(config, 1, "cpu", torch.float32)
    assert helpers["vae"].at_once == 1
    found = FAMILY.preview(network, named, replace(HELD_OUT, helpers=helpers))
    assert list(found) == ["a", "b", "c"]
    assert found["a"].shape == (TITLE + 64, 2 * 64, 3)
    truth, painted = found["a"][TITLE:, :64].astype(int), found["a"][TITLE:, 64:].astype(int)
    schema = FamilyBuilder().schema(PipelineFolder(tiny.base).configs, [Field("image", "image", ("H", "W", 3))])
    stored = ShardSet.open(tiny.shards / "train", schema).read(0).arrays["image"].astype(int)
    assert np.abs(truth - stored).mean() < 12
    assert np.abs(painted - stored).mean() > 20
