"""One real-shaped record is learned by heart: poses to a pixel, and noise better than a prediction of zero."""

import pytest
import torch

from stagecoach.models.dance_with_music.family import DanceWithMusicFamily
from stagecoach.models.dance_with_music.stages import make_stages
from stagecoach.models.dance_with_music.validate import validate
from tests.models.dance_with_music.test_step import changed
from tests.models.declared import undeclared
from tests.tiny_dance import make_network, progress_at


def learn(network, batch, stage: int, steps: int, rate: float) -> list[dict]:
    """Losses by step; the noise differs from step to step."""
    spec = make_stages(network.config)[stage - 1]
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=rate)
    found = []
    for step in range(steps):
        progress = progress_at(step, steps, stage)
        losses = network(batch | {"rng_key": batch["rng_key"] + step}, progress)["losses"]
        found.append({name: value.mean().item() for name, value in losses.items()})
        optimizer.zero_grad()
        sum(term.weight.at(progress) * losses[term.name] for term in spec.losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return found


def test_music_to_pose_places_every_point_within_a_pixel(dance):
    config = changed()
    network, batch = make_network(config, 1), dance.batch(config, 1, count=1)
    found = learn(network, batch, 1, 150, 3e-3)
    assert found[-1]["pose"] < 0.8 * found[0]["pose"]
    data = dance.samples(config).manifest.statistics
    total, count = validate(network, batch, progress_at(150, 150, 1, False), data)["val_pose_error_px"]
    assert total / count < 1


@pytest.mark.parametrize("size", ["tiny", pytest.param("tiny-svd", marks=pytest.mark.slow)])
def test_the_denoiser_is_better_than_a_prediction_of_zero(dance, size):
    config = changed(size)
    network, batch = make_network(config, 2), dance.batch(config, 2, count=1)
    learn(network, batch, 2, 60, 2e-3)
    metrics = validate(network, batch, progress_at(40, 60, 2, False, config), dance.samples(config).manifest.statistics)
    assert not undeclared(DanceWithMusicFamily(), metrics)
    loss, zero = (metrics[f"val_diffusion_loss{suffix}"][0] for suffix in ("", "_baseline"))
    assert loss < 0.9 * zero
