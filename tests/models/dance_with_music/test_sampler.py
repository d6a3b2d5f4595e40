"""Sampling: guidance with the nulls of training, and windows over long dances, against a plain computation."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from stagecoach.models.dance_with_music.base import fill_base
from stagecoach.models.dance_with_music.config import SIZES, DanceConfig, DiffusionConfig, SamplingConfig
from stagecoach.models.dance_with_music.network import build_network
from stagecoach.models.dance_with_music.sampler import (
    draw,
    make_passes,
    make_process,
    make_windows,
    sample,
    unconditional,
)
from tests.models.dance_with_music.champ_inputs import make_conditions, open_zeros

B, FRAMES, STEPS = 2, 11, 4
SPREAD = {"context_length": 6, "context_overlap": 2, "steps": STEPS, "guidance_scale": 3.0}
STARTS = ((0, 4, 5), (0, 2, 5), (0, 1, 5), (0, 3, 5))
"""Of the windows of 6 of 11 frames that share 2, in each of four steps."""


def make_network(size: str, **changes):
    values = SIZES[size].model_dump()
    values["sampling"] |= SPREAD
    for part, own in changes.items():
        values[part] |= own
    config = DanceConfig.model_validate(values)
    network = build_network(config, 3)
    fill_base(network, config, "cpu")
    return open_zeros(network).eval()


def conditions_for(size: str, frames: int = FRAMES):
    found = make_conditions(frames=frames, b=B)
    if size == "tiny-svd":
        g = torch.Generator().manual_seed(2)
        found["guidance"] = {"pose_net": torch.rand(B, frames, 3, 64, 64, generator=g)}
    return found


def noise_for(frames: int = FRAMES):
    return torch.randn(B, frames, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def calling(network):
    return lambda name, *inputs: getattr(network, name)(*inputs)


def plain_scheduler(size: str):
    """As the two projects' configurations have it."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if size == "tiny":
        made = DDIMScheduler(
            **betas,
            clip_sample=False,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
        )
    else:
        made = EulerDiscreteScheduler(
            **betas,
            prediction_type="v_prediction",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
            timestep_type="continuous",
            timestep_spacing="leading",
        )
    made.set_timesteps(STEPS)
    return made


def plain(network, size, conditions, null, noise, scales, starts):
    """Frame by frame and pass by pass, all that conditions a window made anew: the published loops."""
    scheduler, frames = plain_scheduler(size), noise.shape[1]
    x = noise * scheduler.init_noise_sigma
    for k, t in enumerate(scheduler.timesteps):
        scaled, total, weights = scheduler.scale_model_input(x, t), torch.zeros_like(x).double(), [0.0] * frames
        for start in starts[k]:
            run = range(start, start + 6)
            run = [0, *[f + 1 for f in run[:5]]] if size == "tiny-svd" else list(run)
            run = run[:frames]
            passes = []
            for given in (conditions, null):
                own = dict(given) | {"guidance": {n: v[:, run] for n, v in given["guidance"].items()}}
                passes.append(network.denoise(scaled[:, run], t.float().expand(B), own).double())
            for i, frame in enumerate(run):
                w = (i + 0.5) * 2 / len(run)
                w = min(w, 2 - w)
                given, without = (value[:, i] for value in passes)
                total[:, frame] += w * (without + float(scales[frame]) * (given - without))
                weights[frame] += w
        prediction = torch.stack([total[:, f] / weights[f] for f in range(frames)], 1).float()
        x = scheduler.step(prediction, t, x).prev_sample
    return x


@pytest.mark.parametrize("size", ["tiny", "tiny-svd"])
@torch.no_grad()
def test_a_long_dance_is_what_a_plain_loop_over_windows_steps_and_passes_gives(size):
    network, conditions, noise = make_network(size), conditions_for(size), noise_for()
    null = unconditional(conditions, network.config.diffusion)
    expected = plain(network, size, conditions, null, noise, [3.0] * FRAMES, STARTS)
    found = draw(network, noise, conditions)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    still = plain(network, size, conditions, null, noise, [3.0] * FRAMES, (STARTS[0],) * STEPS)
    assert (still - expected).abs().max() > 1e-2, "windows do move"


@pytest.mark.parametrize("size", ["tiny", "tiny-svd"])
@torch.no_grad()
def test_a_short_dance_is_one_window_and_guidance_may_rise_over_its_frames_without_the_pose(size):
    """StableAnimator's: 1 at the first frame to 3 at the last; nothing at all is shown to the null pass."""
    network, conditions, noise = make_network(size), conditions_for(size, 5), noise_for(5)
    published = network.config.diffusion.model_copy(update={"drop_guidance": 1.0})
    null = dict(conditions) | {name: torch.zeros(B, dtype=torch.bool) for name in conditions if name.endswith("_given")}
    scales = [1.0, 1.5, 2.0, 2.5, 3.0]
    expected = plain(network, size, conditions, null, noise, scales, ((0,),) * STEPS)
    guidance = network.guide(conditions, (8, 8))
    for layout in ("together", "sequential"):
        found = sample(
            calling(network),
            make_passes(calling(network), conditions, guidance, published, 3.0),
            noise,
            make_process(network.config),
            STEPS,
            torch.linspace(1, 3, 5),
            make_windows(network.config),
            layout,
        )
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("size", ["tiny", "tiny-svd"])
@pytest.mark.parametrize(
    ("dropped", "photos"),
    [
        ({}, 1),
        ({"drop_guidance": 0.1}, 1),
        ({"drop_embedding": 0.0}, 1),
        ({"drop_face": 0.0}, 2),
        ({"drop_reference": 0.0}, 2),
    ],
)
@torch.no_grad()
def test_what_does_not_depend_on_the_noise_is_made_once(size, dropped, photos):
    """And once more where the null shows the photo beside another embedding."""
    network, conditions, noise = make_network(size, diffusion=dropped), conditions_for(size), noise_for()
    calls = []
    for name in ("face_tokens", "denoising_unet", "guidance", *(["reference_unet"] if size == "tiny" else [])):
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    found = draw(network, noise, conditions)
    assert calls.count("denoising_unet") == STEPS * 3
    assert calls.count("guidance") == 1
    assert calls.count("face_tokens") == photos
    assert calls.count("reference_unet") == (photos if size == "tiny" else 0)
    null = unconditional(conditions, network.config.diffusion)
    expected = plain(network, size, conditions, null, noise, [3.0] * FRAMES, STARTS)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_without_guidance_there_is_one_pass():
    network, conditions = make_network("tiny", sampling={"guidance_scale": 1.0}), conditions_for("tiny")
    rows = []
    network.denoising_unet.register_forward_hook(lambda module, given, out: rows.append(len(given[0])))
    found = draw(network, noise_for(), conditions)
    assert set(rows) == {B}
    expected = plain(network, "tiny", conditions, conditions, noise_for(), [1.0] * FRAMES, STARTS)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_without_conditions_means_without_those_that_training_drops():
    given_, null = make_conditions(), unconditional(make_conditions(), DiffusionConfig())
    assert not any(null[f"{name}_given"].any() for name in ("reference", "embedding", "face"))
    assert null["guidance_given"].all()
    assert null["condition_scale"] == given_["condition_scale"]
    assert torch.equal(null["references"], given_["references"])
    every = unconditional(given_, DiffusionConfig(drop_guidance=0.1, drop_face=0.0))
    assert not every["guidance_given"].any()
    assert every["face_given"].all()


def test_an_overlap_as_long_as_the_context_is_refused():
    with pytest.raises(
        ValueError, match=r"sampling\.context_overlap is 24, expected less than sampling\.context_length, 24"
    ):
        SamplingConfig(context_overlap=24)
