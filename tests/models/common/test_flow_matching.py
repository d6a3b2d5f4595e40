import pytest
import torch

from stagecoach.models.common import flow_matching
from stagecoach.models.common.keyed import rng_keys


def drawn(count: int, steps: int | None = None, shift: float = 5.0) -> torch.Tensor:
    batch = {"uid": torch.arange(count), "rng_key": rng_keys(0, 1, range(count))}
    return flow_matching.draw_sigma(batch, "sigma", shift, steps)


def test_shifted_grid_holds_the_reference_numbers():
    sigma = flow_matching.sigma_grid(1000, 5.0)
    expected = torch.tensor([1, 0.9997999, 0.9375, 0.8333333, 0.625, 0.0049801])
    torch.testing.assert_close(sigma[[0, 1, 250, 500, 750, 999]], expected, atol=1e-5, rtol=0)
    assert (sigma > 0.5).float().mean().item() == pytest.approx(0.834)
    assert sigma.mean().item() == pytest.approx(0.7476, abs=1e-4)


def test_last_of_fifty_inference_steps_is_at_0_0926():
    assert flow_matching.sigma_grid(50, 5.0)[-1].item() == pytest.approx(0.092593, abs=1e-6)


def test_bell_has_mean_one_its_top_at_500_and_no_weight_at_pure_noise():
    sigma = flow_matching.sigma_grid(1000, 5.0)
    weight = flow_matching.bell_weight(sigma, 5.0)
    assert weight.mean().item() == pytest.approx(1, abs=1e-5)
    assert weight.max().item() == pytest.approx(2.0764, abs=1e-4)
    assert flow_matching.timestep(sigma)[weight.argmax()].item() == pytest.approx(500.6, abs=0.1)
    assert weight[0].item() == pytest.approx(0, abs=1e-6)
    assert flow_matching.bell_weight(torch.rand(1000), 5.0).min() >= 0


@pytest.mark.parametrize("steps", [None, 1000])
def test_drawn_sigmas_follow_the_shifted_distribution(steps):
    sigma = drawn(2000, steps)
    assert sigma.dtype == torch.float32
    assert sigma.min() > 0
    assert sigma.max() <= 1
    assert (sigma > 0.5).float().mean().item() == pytest.approx(0.834, abs=0.03)
    assert sigma.mean().item() == pytest.approx(0.7476, abs=0.02)


def test_sigma_drawn_from_a_grid_lies_on_it():
    grid = flow_matching.sigma_grid(10, 3.0)
    distance = (drawn(200, 10, 3.0)[:, None] - grid).abs().min(1)
    assert distance.values.max() < 1e-6
    assert set(distance.indices.tolist()) == set(range(10))


def test_timestep_keeps_what_bf16_would_round_away():
    sigma = torch.tensor([0.9001, 0.9002])
    assert flow_matching.timestep(sigma).unique().numel() == 2
    assert flow_matching.timestep(sigma.bfloat16()).dtype == torch.float32


def test_velocity_leads_from_noise_to_data():
    x0, noise, sigma = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0.1, 0.6, 1.0])
    noisy = flow_matching.add_noise(x0.bfloat16(), noise, sigma)
    assert noisy.dtype == torch.float32
    target = flow_matching.velocity(x0.bfloat16(), noise)
    torch.testing.assert_close(noisy - sigma[:, None, None, None] * target, x0.bfloat16().float())
    torch.testing.assert_close(noisy[2], noise[2])


def test_velocity_error_is_one_number_per_sample():
    prediction, target = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    error = flow_matching.velocity_error(prediction, target)
    assert error.shape == (3,)
    torch.testing.assert_close(error[1], ((prediction[1] - target[1]) ** 2).mean())
