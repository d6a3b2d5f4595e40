"""Stable Diffusion 3 on two ranks: every engine gives the losses of plain PyTorch, and what it trained loads into
diffusers' pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stagecoach.models import get_family
from stagecoach.models.weights.card import read_tensors
from stagecoach.trainer.export import export_adapter
from stagecoach.trainer.recipe import Recipe
from tests.distributed import cases
from tests.distributed.plain import plain_losses
from tests.tiny_sd3 import FAMILY, make_tiny_sd3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_sd3(tmp_path_factory.mktemp("sd3"))


def recipe_for(tiny, run: Path | str, **changes: Any) -> Recipe:
    own = {"steps": 4, "learning_rate": 1e-2, "validate_every": 4, "preview_every": 4, "model": tiny.model}
    return cases.cpu_recipe(FAMILY, tiny.shards, run, 1, **own | changes)


@pytest.fixture(scope="module")
def run(pair, tiny, tmp_path_factory):
    """A run under ZeRO-3."""
    run = tmp_path_factory.mktemp("run")
    pair.run(cases.train, recipe_for(tiny, run).model_dump(), [1])
    return run


def test_zero_3_gives_the_losses_of_plain_pytorch(run, tiny):
    found = cases.losses(run, 1)
    assert len(found) == 4
    assert found == pytest.approx(plain_losses(recipe_for(tiny, "unused")), rel=1e-5)


def test_a_run_validates_against_the_base_alone_and_paints_previews(run):
    """LoRA starts at nothing: before the first step both errors are the same."""
    with_lora, alone = (cases.losses(run, 1, name) for name in ("val_flow_loss", "val_flow_loss_baseline"))
    assert with_lora[0] == alone[0] == alone[-1]
    assert with_lora[-1] != with_lora[0]
    assert list((run / "previews").rglob("*.png"))


@torch.no_grad()
def test_the_trained_adapter_loads_into_diffusers_pipeline(run, tiny, tmp_path):
    adapter = run / "stage1" / "adapter"
    export_adapter(adapter, tmp_path / "lora.safetensors", "fp32", "diffusers-lora")
    pipe = tiny.pipeline()
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")

    family, config = get_family(FAMILY), recipe_for(tiny, run).family_config(get_family(FAMILY), 1)
    network = family.build(config, 1, "cpu", torch.float32)
    family.load_base(network, config, "cpu")
    missing = network.load_state_dict(read_tensors(adapter), strict=False)
    assert not missing.unexpected_keys
    assert all(tensor.any() for tensor in load_file(tmp_path / "lora.safetensors").values())

    generator = torch.Generator().manual_seed(0)
    x, text, pooled = (torch.randn(shape, generator=generator) for shape in ((1, 16, 8, 8), (1, 333, 24), (1, 24)))
    t = torch.tensor([500.0])
    ours = network.predict({"prompt_embeds": text, "pooled": pooled}, x, t)
    theirs = pipe.transformer(x, text, pooled, t).sample
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    pipe.disable_lora()
    assert (pipe.transformer(x, text, pooled, t).sample - ours).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"zero": 1}, id="zero1"),
        pytest.param({"zero": 2}, id="zero2"),
        pytest.param({"activation_checkpointing": "full"}, id="full"),
        pytest.param({"activation_checkpointing": "selective"}, id="selective"),
        pytest.param({"frozen": "shard"}, id="frozen-shard"),
    ],
)
def test_other_engines_give_the_same_losses(pair, tiny, tmp_path, change):
    recipe = recipe_for(tiny, tmp_path, **change)
    pair.run(cases.train, recipe.model_dump(), [1])
    assert cases.losses(tmp_path, 1) == pytest.approx(plain_losses(recipe), rel=1e-5)
