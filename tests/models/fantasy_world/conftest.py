"""Small networks of both designs, on bases saved in diffusers' layout."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from stagecoach.models.fantasy_world.config import SIZES, FantasyWorldConfig
from stagecoach.models.fantasy_world.family import FantasyWorldFamily
from stagecoach.models.fantasy_world.network import build_network

TINY = SIZES["tiny"]
AGGREGATOR = FantasyWorldConfig.model_validate(
    {
        **TINY.model_dump(),
        "geometry": "aggregator",
        "clip": {"frames": 9, "height": 32, "width": 48},
        "backbone": {
            "layers": 6,
            "heads": 2,
            "head_dim": 24,
            "ffn_dim": 64,
            "text_dim": 16,
            "in_channels": 36,
            "image_dim": 16,
        },
        "aggregator": {"dim": 32, "heads": 2, "pose_hidden": 16},
        "camera_control": {"layers": 4, "features": 24, "hidden": 16, "rank": 8},
        "interaction": {"heads": 2, "head_dim": 24},
        "dpt": {**TINY.dpt.model_dump(), "shared_trunk": False},
        "camera_head": {"width": 64, "heads": 2, "layers": 2, "mlp_ratio": 2, "hidden": 32},
    }
)
"""The 14 B design at the smallest widths: image-to-video, cameras in four of six blocks."""
DESIGNS = {"wan": TINY, "aggregator": AGGREGATOR}


@pytest.fixture(scope="session")
def base_folders(tmp_path_factory):
    """A saved transformer per design; gains and biases are random too, so that none can be mixed up unseen."""
    folders = {}
    for name, config in DESIGNS.items():
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model = WanTransformer3DModel(**config.backbone.diffusers())
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.data += 0.1 * torch.randn_like(parameter)
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session", params=DESIGNS)
def config(request, base_folders):
    """Each design in turn, its base set to the saved folder."""
    return with_base(DESIGNS[request.param], base_folders[request.param])


@pytest.fixture(scope="session")
def tiny(base_folders):
    return with_base(TINY, base_folders["wan"])


def with_base(config, folder):
    return config.model_copy(update={"base": str(folder), "allow_random_init": False})


@pytest.fixture(scope="session")
def make_network():
    """``make_network(config, stage, dtype)`` with the base in place."""

    def make(config, stage, dtype=torch.float32):
        network = build_network(config, stage, "cpu", dtype)
        FantasyWorldFamily().load_base(network, config, "cpu")
        return network

    return make
