"""LoRA in any base of diffusers: where it sits, how it starts, and what a pipeline's loader makes of it."""

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from stagecoach.models.common.lora import (
    LoraSection,
    add_lora,
    export_lora,
    find_targets,
    inject_lora,
    lora_layers,
    lora_patterns,
    lora_state,
    with_and_without_lora,
)
from stagecoach.models.common.materialise import RandomWeights, load_base, meta_model, without_lora

SETTINGS = {
    "sample_size": 8,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 6,
}
TARGETS = ("attn.to_q", "attn.to_out.0")


class Network(nn.Module):
    def __init__(self, device="cpu"):
        super().__init__()
        self.transformer = meta_model(SD3Transformer2DModel, SETTINGS)
        self.names = find_targets(self.transformer, TARGETS)
        inject_lora(self.transformer, self.names, rank=4, alpha=8.0, device=device)


def loaded():
    network = Network()
    shapes = {n: tuple(v.shape) for n, v in meta_model(SD3Transformer2DModel, SETTINGS).state_dict().items()}
    source = RandomWeights(shapes)
    load_base(network, source, lambda name: without_lora(name).removeprefix("transformer."), "cpu")
    return network, source


def predict(model):
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return model(
            torch.randn(1, 16, 8, 8, generator=g),
            torch.randn(1, 5, 12, generator=g),
            torch.randn(1, 10, generator=g),
            torch.tensor([500.0]),
        ).sample


def test_a_transformer_of_diffusers_that_loads_the_export_computes_what_the_network_computes():
    network, source = loaded()
    for _, layer in lora_layers(network):
        nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
    tensors = {name: p.detach() for name, p in network.named_parameters() if ".lora_" in name}
    model = SD3Transformer2DModel(**SETTINGS)
    model.load_state_dict({name: source.read(name) for name in model.state_dict()})
    before = predict(model)
    model.load_lora_adapter(export_lora(Network("meta"), tensors), prefix="transformer")
    torch.testing.assert_close(predict(model), predict(network.transformer), atol=1e-5, rtol=1e-5)
    assert (predict(model) - before).abs().max() > 1e-3


def test_it_starts_without_effect_at_values_that_depend_on_the_layers_name():
    one, other = (lora_state(Network()) for _ in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert all(value.any() == ("lora_A" in name) for name, value in one.items())
    names = [f"transformer.transformer_blocks.{i}.attn.{part}.lora_A.weight" for i in (0, 1) for part in ("to_q",)]
    assert not torch.equal(one[names[0]], one[names[1]])


def test_targets_are_ends_of_names_and_a_stage_declares_them_by_block():
    network = Network()
    assert network.names == [f"transformer_blocks.{i}.{target}" for i in (0, 1) for target in TARGETS]
    assert lora_patterns(f"transformer.{name}" for name in network.names) == tuple(
        f"transformer.transformer_blocks.*.{target}.lora_{matrix}" for target in sorted(TARGETS) for matrix in "AB"
    )
    with pytest.raises(ValueError, match=r"LoRA target 'q' names no linear layer of SD3Transformer2DModel"):
        find_targets(meta_model(SD3Transformer2DModel, SETTINGS), ["q"])


def test_an_adapter_that_lacks_a_matrix_is_refused():
    with pytest.raises(ValueError, match=r"lacks 8 LoRA tensors"):
        export_lora(Network("meta"), {})


def test_a_section_gives_its_targets_lora_but_for_those_that_are_skipped():
    base = meta_model(SD3Transformer2DModel, SETTINGS)
    section = LoraSection(rank=2, alpha=6, targets=TARGETS)
    add_lora(base, section, "cpu", skip=["transformer_blocks.1.attn.to_q"])
    layers = dict(lora_layers(base))
    assert set(layers) == set(find_targets(meta_model(SD3Transformer2DModel, SETTINGS), TARGETS)) - {
        "transformer_blocks.1.attn.to_q"
    }
    assert {layer.scaling["default"] for layer in layers.values()} == {3.0}


@torch.no_grad()
def test_the_baseline_of_a_measurement_is_the_base_without_lora():
    network, source = loaded()
    for _, layer in lora_layers(network):
        nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
    model = SD3Transformer2DModel(**SETTINGS)
    model.load_state_dict({name: source.read(name) for name in model.state_dict()})
    plain = predict(model)
    found = with_and_without_lora(network, "val", lambda other: (predict(network.transformer) - other).abs(), plain)
    assert float(found["val_baseline"][0]) < 1e-5 * plain.numel()
    assert float(found["val"][0]) > 1e-3 * plain.numel()
    assert float(found["val"][1]) == float(found["val_baseline"][1]) == plain.numel()
    assert float((predict(network.transformer) - plain).abs().sum()) == float(found["val"][0])
