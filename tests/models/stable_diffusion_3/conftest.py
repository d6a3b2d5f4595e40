"""Shards of rendered pictures and a tiny pipeline, made once."""

from __future__ import annotations

import pytest
import torch

from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.data.streaming.stream import collate
from stagecoach.models.common.keyed import rng_keys
from stagecoach.models.common.lora import lora_layers
from stagecoach.models.stable_diffusion_3.config import SIZES, StableDiffusion3Config
from stagecoach.models.stable_diffusion_3.family import StableDiffusion3Family
from tests.tiny_sd3 import make_tiny_sd3

FAMILY = StableDiffusion3Family()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return make_tiny_sd3(tmp_path_factory.mktemp("sd3"), 8)


@pytest.fixture(scope="session")
def config(tiny) -> StableDiffusion3Config:
    return StableDiffusion3Config.model_validate(SIZES["tiny"].model_dump() | tiny.model)


@pytest.fixture(scope="session")
def batch(tiny, config) -> dict:
    schema, indices = FAMILY.schema(config), [0, 1, 2]
    samples = ShardSet.open(tiny.shards / "train", schema)
    found = collate(schema, [samples.read(i) for i in indices])
    return found | {"uid": torch.tensor(indices), "rng_key": rng_keys(0, 1, indices)}


@pytest.fixture
def network(config):
    """With its base, and LoRA away from its initial values."""
    network = FAMILY.build(config, 1, "cpu", torch.float32)
    FAMILY.load_base(network, config, "cpu")
    generator = torch.Generator().manual_seed(0)
    for _, layer in lora_layers(network):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1, generator=generator)
    return network
