"""Noise processes and samplers against diffusers and the published formulas."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_snr

from stagecoach.models.common.keyed import keyed_randn, rng_keys
from stagecoach.models.common.noise import (
    Ddpm,
    Edm,
    FlowMatching,
    denoise,
    guided,
    resolution_shift,
    signal_at,
    signal_by_timestep,
)


def drawn(count: int, steps: int | None = None, shift: float = 5.0) -> torch.Tensor:
    batch = {"uid": torch.arange(count), "rng_key": rng_keys(0, 1, range(count))}
    return FlowMatching(shift, grid=steps).draw(batch, "sigma")


def test_shifted_grid_holds_the_reference_numbers():
    sigma = FlowMatching(5.0).sigmas(1000)
    expected = torch.tensor([1, 0.9997999, 0.9375, 0.8333333, 0.625, 0.0049801])
    torch.testing.assert_close(sigma[[0, 1, 250, 500, 750, 999]], expected, atol=1e-5, rtol=0)
    assert (sigma > 0.5).float().mean().item() == pytest.approx(0.834)
    assert sigma.mean().item() == pytest.approx(0.7476, abs=1e-4)


def test_last_of_fifty_inference_steps_is_at_0_0926():
    assert FlowMatching(5.0).sigmas(50)[-1].item() == pytest.approx(0.092593, abs=1e-6)


def test_bell_has_mean_one_its_top_at_500_and_no_weight_at_pure_noise():
    sigma = FlowMatching(5.0).sigmas(1000)
    weight = FlowMatching(5.0).bell(sigma)
    assert weight.mean().item() == pytest.approx(1, abs=1e-5)
    assert weight.max().item() == pytest.approx(2.0764, abs=1e-4)
    assert (1000 * sigma)[weight.argmax()].item() == pytest.approx(500.6, abs=0.1)
    assert weight[0].item() == pytest.approx(0, abs=1e-6)
    assert FlowMatching(5.0).bell(torch.rand(1000)).min() >= 0


@pytest.mark.parametrize("steps", [None, 1000])
def test_drawn_sigmas_follow_the_shifted_distribution(steps):
    sigma = drawn(2000, steps)
    assert sigma.dtype == torch.float32
    assert sigma.min() > 0
    assert sigma.max() <= 1
    assert (sigma > 0.5).float().mean().item() == pytest.approx(0.834, abs=0.03)
    assert sigma.mean().item() == pytest.approx(0.7476, abs=0.02)


@pytest.mark.parametrize(
    ("process", "share"),
    [
        (FlowMatching(resolution_shift(4096), "logit_normal"), 0.2282),  # FLUX at 1024 pixels
        (FlowMatching(resolution_shift(1024), "logit_normal"), 0.4111),  # and at 512
        (FlowMatching(1.0, "logit_normal"), 0.6574),
        (FlowMatching(), 0.6),
        (FlowMatching(5.0), 0.2308),
        (FlowMatching(5.0, grid=4), 0.0),
    ],
)
def test_the_share_of_draws_up_to_a_level_is_the_one_that_is_drawn(process, share):
    assert process.share_up_to(0.6) == pytest.approx(share, abs=1e-4)
    assert process.share_up_to(1.0) == 1.0
    uids = torch.arange(40_000)
    sigma = process.draw({"uid": uids, "rng_key": uids}, "t")
    assert (sigma <= 0.6).float().mean().item() == pytest.approx(share, abs=0.01)


def test_sigma_drawn_from_a_grid_lies_on_it():
    grid = FlowMatching(3.0).sigmas(10)
    distance = (drawn(200, 10, 3.0)[:, None] - grid).abs().min(1)
    assert distance.values.max() < 1e-6
    assert set(distance.indices.tolist()) == set(range(10))


def mix(level, x0=None):
    x0 = torch.zeros(len(level), 1) if x0 is None else x0
    return FlowMatching().mix(x0, torch.randn(x0.shape), level)


def test_timestep_keeps_what_bf16_would_round_away():
    sigma = torch.tensor([0.9001, 0.9002])
    assert mix(sigma).level.unique().numel() == 2
    assert mix(sigma.bfloat16()).level.dtype == torch.float32


def test_velocity_leads_from_noise_to_data():
    x0, noise, sigma = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0.1, 0.6, 1.0])
    found = FlowMatching().mix(x0.bfloat16(), noise, sigma)
    assert found.x.dtype == torch.float32
    torch.testing.assert_close(found.x - sigma[:, None, None, None] * found.target, x0.bfloat16().float())
    torch.testing.assert_close(found.estimate(found.target), x0.bfloat16().float())
    torch.testing.assert_close(found.x[2], noise[2])


def test_velocity_error_is_one_number_per_sample():
    prediction, found = torch.randn(3, 4, 2, 2), mix(torch.rand(3), torch.randn(3, 4, 2, 2))
    error = found.error(prediction)
    assert error.shape == (3,)
    torch.testing.assert_close(error[1], ((prediction[1] - found.target[1]) ** 2).mean())


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
    torch.testing.assert_close(signal_by_timestep(), theirs, atol=2e-6, rtol=1e-4)
    assert signal_by_timestep()[-1] == 0
    assert signal_at(300) == pytest.approx(float(theirs[300]), rel=1e-4)


def test_input_target_and_estimate_are_those_of_v_prediction(latents):
    batch, steps = batch_of(4), torch.tensor([0, 250, 700, 999])
    found = Ddpm().noised(batch, latents, steps.float(), "noise")
    theirs, noise = DDPMScheduler(**SETTINGS), keyed_randn(batch, "noise", latents.shape[1:])
    torch.testing.assert_close(found.x, theirs.add_noise(latents, noise, steps), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.target, theirs.get_velocity(latents, noise, steps), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.estimate(found.target), latents, atol=1e-5, rtol=1e-5)


def test_the_offset_shifts_whole_channels_by_the_same_in_all_frames(latents):
    with_offset, without = (
        Ddpm(offset=offset).noised(batch_of(4), torch.zeros_like(latents), torch.full((4,), 999.0), "noise").x
        for offset in (0.05, 0)
    )
    shift = with_offset - without
    torch.testing.assert_close(shift, shift[:, :1, :, :1, :1].expand_as(shift))
    assert shift[:, 0, :, 0, 0].std() == pytest.approx(0.05, rel=0.5)


def test_weights_are_those_of_min_snr():
    """diffusers' example of v-prediction: min(SNR, gamma) / (SNR + 1); CHAMP's has SNR + 1 in the numerator too."""
    scheduler, steps = DDPMScheduler(**SETTINGS), torch.arange(1000)
    snr = compute_snr(scheduler, steps)
    signal = signal_by_timestep()
    expected = {
        "min_snr": snr.clamp_max(5) / (snr + 1),
        "champ": (snr + 1).clamp_max(5) / (snr + 1),
        "none": torch.ones(1000),
    }
    for kind, values in expected.items():
        torch.testing.assert_close(Ddpm(weighting=kind).weight(signal), values, atol=1e-5, rtol=1e-3)
    assert Ddpm().weight(signal)[-1] == 0
    assert Ddpm(weighting="champ").weight(signal)[-1] == 1


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
        assert float(Edm().level_at(torch.tensor(u))) == pytest.approx(math.exp(-logsnr / 2) * 0.5, rel=1e-4)
    assert float(Edm().level_at(torch.tensor(0.0))) == pytest.approx(0.002, rel=1e-4)
    assert float(Edm().level_at(torch.tensor(1.0))) == pytest.approx(700, rel=1e-4)


def test_svd_has_the_input_the_estimate_and_the_weighted_error_of_edm(latents):
    batch, sigma = batch_of(4), torch.tensor([0.05, 0.7, 3.0, 100.0])
    found = Edm().noised(batch, latents, sigma, "noise")
    noise, wide = keyed_randn(batch, "noise", latents.shape[1:]), sigma.view(-1, 1, 1, 1, 1)
    noisy, output = latents + wide * noise, torch.randn_like(latents)
    torch.testing.assert_close(found.x, noisy / (wide**2 + 1).sqrt(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.level, 0.25 * sigma.log())
    estimate = noisy / (wide**2 + 1) - wide / (wide**2 + 1).sqrt() * output
    torch.testing.assert_close(found.estimate(output), estimate, atol=1e-4, rtol=1e-4)
    published = ((1 + wide**2) / wide**2 * (estimate - latents) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(
        found.weight * (output - found.target).square().flatten(1).mean(1), published, rtol=1e-2, atol=1e-4
    )


@pytest.mark.parametrize("process", [Ddpm(offset=0.05), Edm(), FlowMatching(3.0, "logit_normal")])
def test_what_a_sample_gets_does_not_depend_on_its_batch(process, latents):
    def draw(batch, latents):
        return process.noised(batch, latents, process.draw(batch, "level"), "noise")

    whole = draw(batch_of(4), latents)
    alone = {"uid": torch.tensor([2]), "rng_key": rng_keys(0, 2, [2])}
    part = draw(alone, latents[2:3])
    assert torch.equal(part.x, whole.x[2:3])
    assert torch.equal(part.level, whole.level[2:3])
    assert whole.level.unique().numel() == 4


@pytest.mark.parametrize(("steps", "tokens"), [(28, 4096), (28, 1024), (4, 16)])
def test_levels_are_those_of_the_pipeline_of_diffusers(steps, tokens):
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
    own = FlowMatching(resolution_shift(tokens)).scheduler(steps)
    assert torch.allclose(own.sigmas, scheduler.sigmas.float(), atol=1e-6)


@pytest.mark.parametrize("solver", FlowMatching.solvers)
def test_every_solver_steps_over_the_published_levels_which_are_not_those_of_diffusers(solver):
    process, levels = FlowMatching(5.0), []

    def velocity(x, level, k):
        levels.append(level.item() / 1000)
        return torch.zeros_like(x)

    denoise(process, velocity, torch.zeros(1, 2), 50, solver)
    assert levels[:3] == pytest.approx([1, 0.995935, 0.991735], abs=2e-6)
    assert levels[-2:] == pytest.approx([0.172414, 0.092593], abs=2e-6)
    assert process.scheduler(50, solver).sigmas[-1] == 0
    theirs = FlowMatchEulerDiscreteScheduler(shift=5.0)
    theirs.set_timesteps(50)
    assert theirs.sigmas[-2].item() == pytest.approx(0.0244, abs=1e-4)


def test_an_unknown_scheduler_is_refused_by_a_sentence_that_names_those_there_are():
    with pytest.raises(ValueError, match="'DDIMScheduler' does not sample FlowMatching, expected one of FlowMatchEul"):
        FlowMatching().scheduler(4, "DDIMScheduler")
    with pytest.raises(ValueError, match=r"'Euler' does not sample Ddpm, expected one of .*DDIMScheduler"):
        Ddpm().scheduler(4, "Euler")


def test_a_callback_sees_each_step_and_may_change_what_goes_on():
    seen = []

    def on_step(k, t, x):
        seen.append((k, round(t.item()), x.clone()))
        return x + 1 if k == 1 else None

    found = denoise(FlowMatching(), lambda x, level, k: torch.ones_like(x), torch.zeros(1, 2), 4, on_step=on_step)
    assert [(k, t) for k, t, _ in seen] == [(0, 1000), (1, 750), (2, 500), (3, 250)]
    torch.testing.assert_close(torch.cat([x for _, _, x in seen])[:, 0], torch.tensor([-0.25, -0.5, 0.25, 0.0]))
    assert torch.equal(found, seen[-1][2])


@pytest.mark.parametrize("solver", FlowMatching.solvers)
def test_flow_matching_reaches_the_picture_whose_velocity_it_follows(solver):
    x0, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    seen = []

    def velocity(x, t, k):
        seen.append((t.tolist(), k))
        return noise - x0

    found = denoise(FlowMatching(3.0, timesteps=1.0), velocity, noise, 5, solver)
    assert torch.allclose(found, x0, atol=1e-4)
    assert [k for _, k in seen] == [0, 1, 2, 3, 4]
    assert seen[0][0] == pytest.approx([1.0, 1.0], abs=2e-6)


SHAPE = (2, 3, 4, 2, 2)


def _noise(seed: int = 0, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_ddim_reaches_the_latents_whose_velocity_it_is_told(steps):
    """The first step is from pure noise: zero terminal SNR."""
    x0, noise = _noise(1), _noise(2)
    alphas = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    ).alphas_cumprod
    seen = []

    def velocity(x, t, k):
        seen.append(t.tolist())
        alpha = alphas[int(t[0])]
        if alpha == 0:
            assert torch.equal(x, noise)
            return -x0
        own = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        return alpha.sqrt() * own - (1 - alpha).sqrt() * x0

    assert torch.allclose(denoise(Ddpm(), velocity, noise, steps), x0, atol=1e-4)
    assert seen[0] == [999.0, 999.0]
    assert len(seen) == steps


@pytest.mark.parametrize("steps", [4, 25])
def test_euler_is_that_of_diffusers_with_the_configuration_of_svd(steps):
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    scheduler.set_timesteps(steps)
    part = np.linspace(0, 1, steps)
    karras = (700 ** (1 / 7) + part * (0.002 ** (1 / 7) - 700 ** (1 / 7))) ** 7
    assert np.allclose(Edm().scheduler(steps).sigmas[:-1], karras, rtol=1e-4)
    noise, weight = _noise(3), _noise(4)

    def network(x, t):
        return torch.tanh(x * weight + t.view(-1, 1, 1, 1, 1))

    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(scaled, t.float().expand(len(x))), t, x).prev_sample
    assert torch.allclose(denoise(Edm(), lambda x, t, k: network(x, t), noise, steps), x, atol=1e-3)


def test_held_out_errors_are_those_of_fixed_levels_and_noise():
    process = FlowMatching(3.0, "logit_normal")
    batch = {"uid": torch.arange(3), "rng_key": rng_keys(0, 1, range(3)), "bias": 2.0}
    x0 = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    seen = []

    def predict(batch, x, level):
        seen.append(float(level[0]))
        return x * 0 + batch["bias"]

    errors = process.held_out_errors(batch, x0, predict, (0.25, 0.5))
    assert seen == [250.0, 500.0]
    for row, sigma in enumerate((0.25, 0.5)):
        target = keyed_randn(batch, f"val_noise/{sigma}", (4, 5)) - x0
        torch.testing.assert_close(errors[3 * row : 3 * row + 3], (2.0 - target).square().mean((1, 2)))


def test_guidance_goes_from_the_unconditioned_prediction_past_the_conditioned_one():
    predict = guided(lambda batch, x, level: x + batch["text"], {"text": 2.0}, {"text": 0.5}, 3.0)
    x = torch.ones(2, 3)
    torch.testing.assert_close(predict(x, torch.ones(2), 0), x + 0.5 + 3 * 1.5)
