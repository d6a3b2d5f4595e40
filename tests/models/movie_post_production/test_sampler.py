"""Sampling: FLUX's sigmas, and Euler steps that are exact where the velocity is constant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from stagecoach.models.common.reduce import sum_count
from stagecoach.models.movie_post_production.losses import distribution
from stagecoach.models.movie_post_production.sampler import euler, sigmas


@pytest.mark.parametrize(("steps", "tokens"), [(28, 4096), (28, 1024), (4, 16)])
def test_levels_are_those_of_the_librarys_pipeline(steps, tokens):
    """D19: shifted, not linear; as FluxPipeline sets them."""
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert torch.allclose(sigmas(steps, tokens), scheduler.sigmas.float(), atol=1e-6)


def test_euler_reaches_the_picture_whose_velocity_it_follows():
    x0, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    seen = []

    def velocity(x, t, k):
        seen.append((t.tolist(), k))
        return noise - x0

    found = euler(velocity, noise, sigmas(5, 64))
    assert torch.allclose(found, x0, atol=1e-5)
    assert [k for _, k in seen] == [0, 1, 2, 3, 4]
    assert seen[0][0] == [1.0, 1.0]


def test_metrics_are_sums_and_counts_over_what_is_valid():
    """D9: padding of any value has no influence."""
    values, mask = torch.tensor([[0.1, 0.9, torch.nan]]), torch.tensor([[True, True, False]])
    assert [x.item() for x in sum_count(values, mask)] == [pytest.approx(1.0), 2]
    parts = distribution("alpha_distribution", values, mask)
    assert list(parts) == [
        f"alpha_distribution/{a}-{b}"
        for a, b in (("0.0", "0.2"), ("0.2", "0.4"), ("0.4", "0.6"), ("0.6", "0.8"), ("0.8", "1.0"))
    ]
    assert [x.item() for x, _ in parts.values()] == [1, 0, 0, 0, 1]
