"""A tiny base in diffusers' layout, and networks built on it once per session."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from models.fantasy_world.base import load_base
from models.fantasy_world.config import SIZES
from models.fantasy_world.network import build_network


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A saved transformer of the tiny size; gains and biases are random too, so that none can be mixed up unseen."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = WanTransformer3DModel(**SIZES["tiny"].backbone.diffusers())
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(base_folder):
    return SIZES["tiny"].model_copy(update={"base": str(base_folder), "allow_random_base": False})


@pytest.fixture
def make_network(tiny):
    """``make_network(stage, dtype, config)`` with the base in place."""
    def make(stage, dtype=torch.float32, config=tiny):
        network = build_network(config, stage, "cpu", dtype)
        load_base(network, config, "cpu", dtype)
        return network
    return make
