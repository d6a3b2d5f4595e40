"""A step runs where its batch is: on the meta device a tensor made elsewhere or a value asked of the device raises."""

import pytest
import torch
from torch import nn

from stagecoach.models import get_family
from stagecoach.models.family import Progress
from stagecoach.models.trainable import freeze
from stagecoach.trainer.recipe import load_recipe
from stagecoach.trainer.stage_plan import StagePlan

STEPS = [
    ("stable_diffusion_3", "tiny", 1),
    ("fantasy_world", "tiny", 1),
    ("fantasy_world", "tiny", 2),
    *(("dance_with_music", profile, stage) for profile in ("tiny", "tiny-svd") for stage in (1, 2, 3)),
    *(("movie_post_production", "tiny", stage) for stage in (1, 2, 3)),
]


@pytest.mark.parametrize(("name", "profile", "stage"), STEPS)
def test_a_bf16_step_mixes_no_devices_and_waits_for_none(name, profile, stage):
    family, recipe = get_family(name), load_recipe(family=name, profile=profile)
    config = StagePlan.resolve(recipe, stage).config
    network = family.build(config, stage, "cpu", torch.bfloat16)
    family.load_base(network, config, "cpu")
    freeze(network, family.stages(config)[stage - 1])
    helpers = family.helpers(config, stage, "cpu", torch.bfloat16)
    for top in (network, *helpers.values()):
        _to_meta(top)
    batch = family.example_batch(config, stage, 2, "meta", 0)

    losses = network(batch, Progress(9, 10, stage, 0, helpers=helpers))["losses"]
    assert {value.device.type for value in losses.values()} == {"meta"}
    torch.stack([value.sum() for value in losses.values()]).sum().backward()
    assert any(p.grad is not None for p in network.parameters())


def _to_meta(top: nn.Module) -> None:
    """All parameters and buffers, trained ones in bf16 as an engine holds them; ``Module.to`` would leave those that a
    module keeps as plain attributes, which is what the test is to find."""
    for module in top.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                dtype = torch.bfloat16 if parameter.requires_grad else parameter.dtype
                module._parameters[name] = nn.Parameter(parameter.data.to("meta", dtype), parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = buffer.to("meta")
