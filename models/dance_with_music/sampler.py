"""Videos from noise: DDIM for ``champ``, Euler steps over Karras' sigmas for ``svd``, both with classifier-free
guidance, and long clips in windows that overlap."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from stagecoach.models.dance_with_music.config import DiffusionConfig, SamplingConfig

Conditions = Mapping[str, Any]
Predict = Callable[[Tensor, Tensor], Tensor]
"""(x ``[B, T, 4, h, w]``, level ``[B]``) -> what the network makes of them."""

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 700.0, 7.0
"""Of SVD's scheduler."""


@torch.no_grad()
def draw(network: nn.Module, noise: Tensor, conditions: Conditions) -> Tensor:
    """Scaled latents fp32 ``[B, T, 4, h, w]`` from standard normal ``noise`` of that shape. The network is called as
    often whatever the conditions hold: once per step and window, with guidance on twice as many samples."""
    config = network.config
    predict = guided(network.denoise, conditions, unconditional(conditions, config.diffusion), config.sampling)
    return (euler if config.backbone == "svd" else ddim)(predict, noise, config.sampling.steps)


def unconditional(conditions: Conditions, dropout: DiffusionConfig) -> dict[str, Any]:
    """The conditions with the nulls of training in place of those that training drops. One that it never drops stays:
    the network has not seen what is without."""
    dropped = {
        "reference_given": dropout.drop_reference,
        "clip_given": dropout.drop_clip,
        "face_given": dropout.drop_face,
        "guidance_given": dropout.drop_guidance,
    }
    return dict(conditions) | {name: torch.zeros_like(conditions[name]) for name, rate in dropped.items() if rate > 0}


def guided(
    denoise: Callable[[Tensor, Tensor, Conditions], Tensor],
    conditions: Conditions,
    null: Conditions,
    settings: SamplingConfig,
) -> Predict:
    """Classifier-free guidance, window by window: null + ``settings.guidance`` (given - null), both in one call."""
    both = conditions if settings.guidance == 1 else _stacked(conditions, null)

    def window(x: Tensor, level: Tensor, part: slice) -> Tensor:
        given = _cut(both, part)
        if settings.guidance == 1:
            return denoise(x, level, given).float()
        with_it, without = denoise(torch.cat([x, x]), torch.cat([level, level]), given).float().chunk(2)
        return without + settings.guidance * (with_it - without)

    def predict(x: Tensor, level: Tensor) -> Tensor:
        parts = windows(x.shape[1], settings.window, settings.overlap)
        total, count = torch.zeros_like(x), x.new_zeros(x.shape[1])
        for part in parts:
            total[:, part] += window(x[:, part], level, part)
            count[part] += 1
        return total / count[:, None, None, None]

    return predict


def windows(frames: int, length: int, overlap: int) -> list[slice]:
    """Runs of ``length`` frames that cover ``frames``, each starting ``length - overlap`` after the one before; the
    last ends with the clip and so may share more. One where the clip is no longer than that."""
    last = max(frames - length, 0)
    return [slice(start, min(start + length, frames)) for start in (*range(0, last, length - overlap), last)]


def ddim(predict: Predict, noise: Tensor, steps: int) -> Tensor:
    """DDIM over v-predictions, on the schedule that ``champ`` trains on: scaled-linear, zero terminal SNR, timesteps
    spaced from the last one back."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(steps)
    x = noise.float()
    for t in scheduler.timesteps:
        level = torch.full((len(x),), float(t), device=x.device)
        x = scheduler.step(predict(x, level), int(t), x).prev_sample
    return x


def euler(predict: Predict, noise: Tensor, steps: int) -> Tensor:
    """Euler's method for dx / dsigma = (x - x0) / sigma, x0 by EDM's preconditioning as SVD has it (v-prediction,
    sigma_data 1); the levels that the network is told are ln(sigma) / 4."""
    levels = karras_sigmas(steps)
    x = noise.float() * (levels[0] ** 2 + 1) ** 0.5
    for now, then in itertools.pairwise(levels):
        level = torch.full((len(x),), float(now.log()) / 4, device=x.device)
        size = float(now)
        out = predict(x / (size**2 + 1) ** 0.5, level)
        x0 = x / (size**2 + 1) - size / (size**2 + 1) ** 0.5 * out
        x = x + (float(then) - size) * (x - x0) / size
    return x


def karras_sigmas(steps: int) -> Tensor:
    """fp64 ``[steps + 1]`` from 700 down to 0.002 (T. Karras et al., 2022, equation 5), then 0."""
    part = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    sigmas = (high + part * (low - high)) ** RHO
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _stacked(given: Conditions, null: Conditions) -> dict[str, Any]:
    """Both along the batch; what is no tensor is the same for both."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            found[name] = _stacked(value, null[name])
        else:
            found[name] = torch.cat([value, null[name]]) if isinstance(value, Tensor) else value
    return found


def _cut(conditions: Conditions, part: slice) -> dict[str, Any]:
    """What the frames ``part`` are told: only the guidance goes by frames."""
    return dict(conditions) | {"guidance": {name: value[:, part] for name, value in conditions["guidance"].items()}}
