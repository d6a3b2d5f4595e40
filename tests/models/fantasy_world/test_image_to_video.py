"""The guide's geometry on an image-to-video backbone, as ``wan2.1-1.3b-i2v`` has it, at the tiny size."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from stagecoach.models.family import Progress
from stagecoach.models.fantasy_world.config import FantasyWorldConfig
from tests.models.fantasy_world.conftest import TINY
from tests.models.fantasy_world.fakes import make_batch
from tests.models.fantasy_world.inputs import make_inputs, open_gates


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    values = TINY.model_dump()
    values["backbone"] |= {"layers": 5, "in_channels": 36, "image_dim": 16, "text_length": 512}
    values |= {"clip": {"frames": 5, "height": 32, "width": 48}, "split": 1, "allow_random_init": False}
    folder = tmp_path_factory.mktemp("wan-i2v")
    config = FantasyWorldConfig.model_validate(values | {"base": str(folder)})
    with torch.random.fork_rng():
        torch.manual_seed(5)
        WanTransformer3DModel(**config.backbone.diffusers()).save_pretrained(folder)
    return config


@torch.no_grad()
def test_a_new_stage_two_makes_the_bases_video_of_the_picture(config, make_network):
    inputs = make_inputs(config)
    base = WanTransformer3DModel.from_pretrained(config.base)
    text = torch.nn.functional.pad(inputs["text"], (0, 0, 0, 512 - inputs["text"].shape[1]))
    latent = torch.cat([inputs["latents_noisy"], inputs["image_latent"]], 1)
    expected = base(latent, inputs["timestep"], text, inputs["image_states"]).sample
    assert torch.equal(make_network(config, 2).predict(**inputs)["video"], expected)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_trains_every_tensor_and_the_geometry_sees_the_picture(config, make_network, stage):
    torch.manual_seed(0)
    network = make_network(config, stage)
    open_gates(network)
    losses = network(make_batch(2, config, stage=stage), Progress(0, 10, stage, 0))["losses"]
    sum(loss.mean() for loss in losses.values()).backward()
    dead = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead
    inputs = make_inputs(config)
    with torch.no_grad():
        depth = network.predict(**inputs)["depth"]
        inputs["image_states"] = inputs["image_states"].flip(0)
        assert (network.predict(**inputs)["depth"] - depth).abs().max() > 1e-6
