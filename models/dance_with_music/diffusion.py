"""Noise: the DDPM of CHAMP (arXiv 2403.14781) and the EDM of StableAnimator (arXiv 2411.17697), in fp32.

Both are one process, ``x = sqrt(a) x0 + sqrt(1 - a) noise`` with the signal's part ``a`` of the variance, of which the
network predicts ``v = sqrt(a) noise - sqrt(1 - a) x0`` (arXiv 2202.00512): EDM's scaled input ``(x0 + sigma noise) /
sqrt(sigma^2 + 1)`` is that ``x`` for ``a = 1 / (1 + sigma^2)``, its raw output is ``v``, and its weighted error ``(1 +
sigma^2) / sigma^2 (x0' - x0)^2`` is ``(v' - v)^2``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stagecoach.models.common.constants import constant
from stagecoach.models.common.keyed import keyed_rand, keyed_randn
from stagecoach.models.dance_with_music.config import DanceConfig, DiffusionConfig
from stagecoach.models.family import Batch

TIMESTEPS = 1000
BETAS = (0.00085, 0.012)
SIGMAS = (0.002, 700.0)
SIGMA_DATA, IMAGE_SIDE, NOISE_SIDES = 0.5, 64, (64, 32)
"""Of StableAnimator's interpolated cosine schedule (arXiv 2301.11093, section 2.3): noise of an image of 64 pixels a
side at the least sigma, of 32 at the largest."""


@dataclass(frozen=True)
class Noised:
    """``x`` fp32 ``[B, T, 4, h, w]``: what the network gets, with ``level`` fp32 ``[B]`` (champ: timestep; svd: 0.25 ln
    sigma). ``v``, shaped as ``x``: what it should say. ``signal`` fp32 ``[B]``: the signal's part of the variance;
    ``weight`` fp32 ``[B]``: of the squared error in v."""

    x: Tensor
    level: Tensor
    v: Tensor
    signal: Tensor
    weight: Tensor

    def estimate(self, prediction: Tensor) -> Tensor:
        """The clean latents that ``prediction`` (of v) says, fp32 ``[B, T, 4, h, w]``."""
        a = _wide(self.signal)
        return a.sqrt() * self.x - (1 - a).sqrt() * prediction.float()


def draw_noised(config: DanceConfig, batch: Batch, latents: Tensor) -> Noised:
    """``latents`` ``[B, T, 4, h, w]`` at a noise level per sample; noise and level are keyed by the sample."""
    u = keyed_rand(batch, "noise_level")
    levels = sigma_of(u) if config.backbone == "svd" else (u * TIMESTEPS).floor()
    return noised(config, batch, latents, levels, "noise")


def noised(config: DanceConfig, batch: Batch, latents: Tensor, levels: Tensor, purpose: str) -> Noised:
    """``levels`` fp32 ``[B]``: timesteps 0..999 (champ) or sigmas (svd). The noise is keyed by ``purpose``."""
    x0 = latents.float()
    noise = keyed_randn(batch, purpose, x0.shape[1:])
    if config.backbone == "svd":
        signal = 1 / (1 + levels.square())
        told, weight = 0.25 * levels.log(), torch.ones_like(signal)
    else:
        own = config.diffusion
        if own.noise_offset:
            shift = keyed_randn(batch, f"{purpose}_offset", (1, x0.shape[2], 1, 1))
            noise = noise + own.noise_offset * shift
        signal = alphas_cumprod(x0.device)[levels.long()]
        told, weight = levels, v_weight(signal, own)
    a = _wide(signal)
    return Noised(a.sqrt() * x0 + (1 - a).sqrt() * noise, told, a.sqrt() * noise - (1 - a).sqrt() * x0, signal, weight)


def v_weight(signal: Tensor, config: DiffusionConfig) -> Tensor:
    """Of the squared error in v. ``min_snr``: min(SNR, gamma) / (SNR + 1) (arXiv 2303.09556, section 3.4), which is 0
    where there is no signal left; ``champ``: min(SNR + 1, gamma) / (SNR + 1); ``none``: 1. With SNR + 1 = 1 / (1 - a).
    """
    snr = signal / (1 - signal)
    if config.weighting == "min_snr":
        return snr.clamp_max(config.snr_gamma) * (1 - signal)
    if config.weighting == "champ":
        return (snr + 1).clamp_max(config.snr_gamma) * (1 - signal)
    return torch.ones_like(signal)


def alphas_cumprod(device: torch.device | str = "cpu") -> Tensor:
    """fp32 ``[1000]``: the signal's part of the variance by timestep, 0 at the last (arXiv 2305.08891, algorithm 1)."""
    return constant(_alphas_cumprod(), torch.device(device))


def late_signal(timestep: int) -> float:
    """The signal's part at ``timestep`` of the DDPM, by which "below this timestep" is asked of either process."""
    return _alphas_cumprod()[min(timestep, TIMESTEPS - 1)]


def sigma_of(u: Tensor) -> Tensor:
    """``u`` in [0, 1] -> sigma, fp32, rising from 0.002 to 700 along the interpolated cosine schedule."""
    u = u.double()
    logsnr = torch.lerp(*(_cosine_logsnr(u, 2 * math.log(side / IMAGE_SIDE)) for side in NOISE_SIDES), u)
    return (torch.exp(-logsnr / 2) * SIGMA_DATA).float()


def _cosine_logsnr(u: Tensor, shift: float) -> Tensor:
    """Log SNR of the cosine schedule, shifted, falling from that of the least sigma to that of the largest."""
    most, least = (-2 * math.log(sigma / SIGMA_DATA) - shift for sigma in SIGMAS)
    first, last = math.atan(math.exp(-0.5 * most)), math.atan(math.exp(-0.5 * least))
    return -2 * torch.log(torch.tan(first + u * (last - first))) + shift


@functools.cache
def _alphas_cumprod() -> tuple[float, ...]:
    root = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, TIMESTEPS, dtype=torch.float64)
    signal = (1 - root.square()).cumprod(0).sqrt()
    scaled = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return tuple(scaled.square().tolist())


def _wide(per_sample: Tensor) -> Tensor:
    return per_sample.view(-1, 1, 1, 1, 1)
