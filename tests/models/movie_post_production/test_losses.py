"""Flow matching, in-box term and prior of alpha against the published numbers, one number per sample."""

import pytest
import torch

from stagecoach.models.common.keyed import rng_keys
from stagecoach.models.common.noise import FlowMatching, resolution_shift
from stagecoach.models.movie_post_production import losses
from stagecoach.models.movie_post_production.config import FlowMatchingConfig


def keyed(count: int) -> dict:
    return {"uid": torch.arange(count), "rng_key": rng_keys(0, 1, range(count))}


def test_the_shift_by_resolution_is_that_of_flux():
    """R1: e^mu of 256, 1024, 2304 and 4096 tokens, and t = 0.5 moved by it."""
    expected = {
        256: (1.648721, 0.622459),
        1024: (1.877611, 0.652489),
        2304: (2.331861, 0.699867),
        4096: (3.158193, 0.759511),
    }
    for tokens, (shift, half) in expected.items():
        assert resolution_shift(tokens) == pytest.approx(shift, abs=1e-6)
        assert FlowMatching(shift).level_at(torch.tensor(0.5)).item() == pytest.approx(half, abs=1e-6)


def test_noise_velocity_and_clean_estimate():
    """R7; D17's latents aside, x0 comes back exactly from x_t and the true velocity."""
    x0, noise, t = torch.full((1, 1, 1, 1), 1.5), torch.full((1, 1, 1, 1), -0.5), torch.tensor([0.3])
    found = FlowMatching().mix(x0, noise, t)
    assert found.x.item() == pytest.approx(0.9)
    assert found.target.item() == -2
    assert found.estimate(found.target).item() == pytest.approx(1.5)


def test_timesteps_follow_the_sound_and_the_seeds_distribution():
    """D19: the default is logit-normal, moved by the resolution, and tells guidance 1; the seed: uniform and 3.5."""
    batch, shift = keyed(4000), resolution_shift(4096)
    t = losses.make_process(FlowMatchingConfig(), 4096).draw(batch, "t")
    u = t / (shift - (shift - 1) * t)
    normal = torch.logit(u.double())
    assert normal.mean().abs() < 0.06
    assert abs(normal.std() - 1) < 0.05
    uniform = losses.make_process(
        FlowMatchingConfig(t_sampling="uniform", shift="none", guidance_scale=3.5), 4096
    ).draw(batch, "t")
    assert uniform.min() > 0
    assert uniform.max() <= 1
    assert abs(uniform.mean() - 0.5) < 0.02
    assert abs(uniform.var() - 1 / 12) < 0.004
    assert FlowMatchingConfig().guidance_scale == 1.0


def test_in_box_error_sees_the_boxes_only_and_is_per_sample():
    prediction, target = torch.zeros(3, 2, 4, 4), torch.ones(3, 2, 4, 4)
    target[0, :, 0, 0] = 3
    prediction[0, :, 3, 3] = torch.nan
    covered = torch.zeros(3, 4, 4, dtype=torch.bool)
    covered[0, 0, :2], covered[1] = True, True
    assert losses.in_box_error(prediction, target, covered).tolist() == [5, 1, 0]


@pytest.mark.parametrize("kind", ["depth", "mean"])
def test_the_prior_of_alpha_is_least_where_it_should_be_and_ignores_padding(kind):
    depth, valid = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[True, True, True, False]])
    best = torch.tensor([[0.8, 0.5, 0.2, 0.9]], requires_grad=True)
    loss = losses.alpha_prior(best, depth, valid, kind)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.sum().backward()
    assert best.grad.abs().max() < 1e-6
    worse = losses.alpha_prior(torch.tensor([[0.9, 0.9, 0.9, 0.1]]), depth, valid, kind)
    assert worse.item() > 0.1
    empty = losses.alpha_prior(torch.tensor([[0.9, 0.9, 0.9, 0.1]]), depth, torch.zeros_like(valid), kind)
    assert empty.tolist() == [0]


def test_without_a_prior_its_loss_and_gradient_are_zero():
    alpha = torch.tensor([[0.9, 0.1]], requires_grad=True)
    loss = losses.alpha_prior(alpha, torch.zeros(1, 2), torch.tensor([[True, True]]), "none")
    loss.sum().backward()
    assert loss.tolist() == [0]
    assert alpha.grad.tolist() == [[0, 0]]


def test_the_learning_rate_follows_the_warm_up_and_the_cosine_of_the_recipe():
    """R11 of both profiles' stage 1: 0, 5e-5, 1e-4, 5e-5, 0 at steps 0, 500, 1000, 35500, 70000, counted in optimizer
    steps regardless of the world size (D15)."""
    from stagecoach.trainer.engine import learning_rate
    from stagecoach.trainer.recipe import StageRecipe

    stage = StageRecipe(steps=70000, global_batch=8, learning_rate=1e-4, warmup_steps=1000, schedule="cosine")
    for step, expected in ((500, 5e-5), (1000, 1e-4), (35500, 5e-5), (70000, 0)):
        assert learning_rate(stage, step) == pytest.approx(expected, abs=1.1e-7)
    assert learning_rate(stage, 0) == pytest.approx(0, abs=1.1e-7)
