"""A base in 8 bits: smaller, close to what it computed, and nothing that was trained is touched."""

import pytest
import torch
from torch import nn

from stagecoach import MoviePostPipeline
from stagecoach.data.files import MissingPackageError
from stagecoach.models.common.quantize import is_quantized, quantize, weight_bytes
from stagecoach.models.weights import load_network, open_weights
from tests.models.weights.held import hold

BOUNDS = {"int8": 0.02, "fp8": 0.06}
"""Of the largest output: 127 steps to a row's largest weight; three bits of mantissa."""


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, 64)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)) for _ in range(3))
        self.head = nn.Linear(64, 16)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Blocks().requires_grad_(False)


@torch.no_grad()
@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_blocks_are_smaller_and_compute_nearly_the_same_on_the_cpu(network, kind, dtype):
    network.to(dtype)
    x = torch.randn(8, 16).to(dtype)
    expected, before = network(x), weight_bytes(network)
    assert not is_quantized(network)
    assert quantize(network, kind) == 6
    found = network(x)
    assert is_quantized(network)
    assert found.dtype == dtype
    assert weight_bytes(network) < (0.4 if dtype == torch.float32 else 0.7) * before
    error = (found - expected).abs().max() / expected.abs().max()
    assert 0 < error < BOUNDS[kind]


def test_what_trains_was_trained_or_stands_outside_of_the_blocks_stays(network):
    network.blocks[0][0].requires_grad_(True)
    assert quantize(network, "int8", {"blocks.1.0.weight"}) == 4
    plain = {name for name, value in network.named_parameters() if type(value) is nn.Parameter}
    assert {name for name in plain if name.endswith("weight")} == {
        "embed.weight",
        "blocks.0.0.weight",
        "blocks.1.0.weight",
        "head.weight",
    }


def test_an_unknown_kind_a_network_without_blocks_and_a_missing_package_are_named(network, monkeypatch):
    with pytest.raises(ValueError, match=r"quantize is 'int3', expected one of int8, fp8"):
        quantize(network, "int3")
    with pytest.raises(ValueError, match=r"Linear has no frozen linear layer in a block"):
        quantize(nn.Linear(4, 4), "int8")
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(MissingPackageError, match=r"torchao.*pip install 'stagecoach\[quantize\]'"):
        quantize(network, "int8")
    assert not is_quantized(network)


def test_a_device_that_cannot_compute_a_kind_is_named_and_nothing_is_changed(network, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no kernel for float8 on this device\nand a stack")

    monkeypatch.setattr("torchao.quantization.quantize_", fail)
    with pytest.raises(ValueError, match=r"^fp8 weights .* on cpu in torch.float32 \(no kernel .*\); take int8$"):
        quantize(network, "fp8")
    assert not is_quantized(network)


@pytest.mark.parametrize("family", ["fantasy_world", "movie_post_production", "dance_with_music"])
def test_a_networks_base_is_quantised_and_every_trained_tensor_is_as_in_the_adapter(tmp_path, family):
    weights = open_weights(hold(tmp_path / "run", family).adapter)
    plain, small = load_network(weights), load_network(weights, quantize="int8")
    assert weight_bytes(small) < weight_bytes(plain)
    for name, value in weights.tensors().items():
        assert type(small.get_parameter(name)) is nn.Parameter, name
        assert torch.equal(small.get_parameter(name), value), name
    # and of the base itself, what would be trained stays too
    base = load_network(open_weights(None, family=family, size="tiny"), quantize="int8")
    quantised = {name for name, value in base.named_parameters() if type(value) is not nn.Parameter}
    assert quantised == {name for name, value in small.named_parameters() if type(value) is not nn.Parameter}


def test_a_pipeline_in_eight_bits_paints_nearly_the_same_and_is_not_saved(tmp_path):
    adapter = hold(tmp_path / "run", "movie_post_production").adapter
    generator = torch.Generator().manual_seed(1)
    given = {
        "prompt_embeds": torch.randn(1, 6, 24, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, 20, generator=generator),
        "latents": torch.randn(1, 16, 8, 8, generator=generator),
    }

    def paint(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(**given, num_inference_steps=3, output_type="latent").images

    expected = paint(MoviePostPipeline.from_adapter(adapter))
    small = MoviePostPipeline.from_adapter(adapter, quantize="int8")
    error = (paint(small) - expected).abs().max() / expected.abs().max()
    assert 0 < error < BOUNDS["int8"]
    with pytest.raises(ValueError, match=r"in 8 bits is not saved"):
        small.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").rglob("*.safetensors"))
