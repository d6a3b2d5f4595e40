"""Noise levels, inputs, targets and weights against diffusers and the published formulas."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr

from stagecoach.models.common.keyed import keyed_randn, rng_keys
from stagecoach.models.dance_with_music.config import SIZES, DiffusionConfig
from stagecoach.models.dance_with_music.diffusion import (
    alphas_cumprod,
    draw_noised,
    late_signal,
    noised,
    sigma_of,
    v_weight,
)

SETTINGS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}


def batch_of(count: int) -> dict:
    return {"uid": torch.arange(count), "rng_key": rng_keys(0, 2, range(count))}


@pytest.fixture
def latents():
    return torch.randn(4, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_the_table_is_that_of_diffusers(scheduler):
    theirs = scheduler(**SETTINGS).alphas_cumprod
    torch.testing.assert_close(alphas_cumprod(), theirs, atol=2e-6, rtol=1e-4)
    assert alphas_cumprod()[-1] == 0
    assert late_signal(300) == pytest.approx(float(theirs[300]), rel=1e-4)


def test_input_target_and_estimate_are_those_of_v_prediction(latents):
    config = SIZES["tiny"].model_copy(update={"diffusion": DiffusionConfig(noise_offset=0)})
    batch, steps = batch_of(4), torch.tensor([0, 250, 700, 999])
    found = noised(config, batch, latents, steps.float(), "noise")
    theirs, noise = DDPMScheduler(**SETTINGS), keyed_randn(batch, "noise", latents.shape[1:])
    torch.testing.assert_close(found.x, theirs.add_noise(latents, noise, steps), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.v, theirs.get_velocity(latents, noise, steps), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.estimate(found.v), latents, atol=1e-5, rtol=1e-5)


def test_the_offset_shifts_whole_channels_by_the_same_in_all_frames(latents):
    with_offset, without = (
        noised(
            SIZES["tiny"].model_copy(update={"diffusion": DiffusionConfig(noise_offset=offset)}),
            batch_of(4),
            torch.zeros_like(latents),
            torch.full((4,), 999.0),
            "noise",
        ).x
        for offset in (0.05, 0)
    )
    shift = with_offset - without
    torch.testing.assert_close(shift, shift[:, :1, :, :1, :1].expand_as(shift))
    assert shift[:, 0, :, 0, 0].std() == pytest.approx(0.05, rel=0.5)


def test_weights_are_those_of_min_snr():
    """diffusers' example of v-prediction: min(SNR, gamma) / (SNR + 1); CHAMP's has SNR + 1 in the numerator too."""
    scheduler, steps = DDPMScheduler(**SETTINGS), torch.arange(1000)
    snr = compute_snr(scheduler, steps)
    signal = alphas_cumprod()
    expected = {
        "min_snr": snr.clamp_max(5) / (snr + 1),
        "champ": (snr + 1).clamp_max(5) / (snr + 1),
        "none": torch.ones(1000),
    }
    for kind, values in expected.items():
        torch.testing.assert_close(v_weight(signal, DiffusionConfig(weighting=kind)), values, atol=1e-5, rtol=1e-3)
    assert v_weight(signal, DiffusionConfig())[-1] == 0
    assert v_weight(signal, DiffusionConfig(weighting="champ"))[-1] == 1


def test_sigmas_follow_the_published_interpolated_cosine_schedule():
    """As StableAnimator draws them: its uniform number counts from the largest sigma."""

    def cosine(t, logsnr_min, logsnr_max):
        t_min, t_max = math.atan(math.exp(-0.5 * logsnr_max)), math.atan(math.exp(-0.5 * logsnr_min))
        return -2 * math.log(math.tan(t_min + t * (t_max - t_min)))

    def shifted(t, side, logsnr_min, logsnr_max):
        shift = 2 * math.log(side / 64)
        return cosine(t, logsnr_min - shift, logsnr_max - shift) + shift

    least, most = (-2 * math.log(sigma / 0.5) for sigma in (0.002, 700))
    for u in (0.0, 0.1, 0.37, 0.8, 1.0):
        t = 1 - u
        logsnr = (1 - t) * shifted(t, 32, least, most) + t * shifted(t, 64, least, most)
        assert float(sigma_of(torch.tensor(u))) == pytest.approx(math.exp(-logsnr / 2) * 0.5, rel=1e-4)
    assert float(sigma_of(torch.tensor(0.0))) == pytest.approx(0.002, rel=1e-4)
    assert float(sigma_of(torch.tensor(1.0))) == pytest.approx(700, rel=1e-4)


def test_svd_has_the_input_the_estimate_and_the_weighted_error_of_edm(latents):
    batch, sigma = batch_of(4), torch.tensor([0.05, 0.7, 3.0, 100.0])
    found = noised(SIZES["tiny-svd"], batch, latents, sigma, "noise")
    noise, wide = keyed_randn(batch, "noise", latents.shape[1:]), sigma.view(-1, 1, 1, 1, 1)
    noisy, output = latents + wide * noise, torch.randn_like(latents)
    torch.testing.assert_close(found.x, noisy / (wide**2 + 1).sqrt(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.level, 0.25 * sigma.log())
    estimate = noisy / (wide**2 + 1) - wide / (wide**2 + 1).sqrt() * output
    torch.testing.assert_close(found.estimate(output), estimate, atol=1e-4, rtol=1e-4)
    published = ((1 + wide**2) / wide**2 * (estimate - latents) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(
        found.weight * (output - found.v).square().flatten(1).mean(1), published, rtol=1e-2, atol=1e-4
    )


@pytest.mark.parametrize("size", ["tiny", "tiny-svd"])
def test_what_a_sample_gets_does_not_depend_on_its_batch(size, latents):
    whole = draw_noised(SIZES[size], batch_of(4), latents)
    alone = {"uid": torch.tensor([2]), "rng_key": rng_keys(0, 2, [2])}
    part = draw_noised(SIZES[size], alone, latents[2:3])
    assert torch.equal(part.x, whole.x[2:3])
    assert torch.equal(part.level, whole.level[2:3])
    assert whole.level.unique().numel() == 4
