"""Rectified-flow matching with a shifted noise schedule (Wan2.1, SD3 section 3.1).

``x_t = (1 - sigma) x_0 + sigma noise``; the network predicts the velocity ``noise - x_0``; the timestep that it is
told is ``1000 sigma``. Everything here is fp32: in bf16 neighbouring timesteps above 256 become one number.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from stagecoach.models.common.keyed import keyed_rand

TIMESTEPS = 1000
_BELL_WIDTH = 1000.0


def shift_sigma(u: Tensor, shift: float) -> Tensor:
    """``u`` in [0, 1] -> sigma = shift u / (1 + (shift - 1) u): a shift above 1 moves mass to the noisy end."""
    return shift * u / (1 + (shift - 1) * u)


def sigma_grid(steps: int, shift: float, device: torch.device | str = "cpu") -> Tensor:
    """fp32 ``[steps]``, falling from 1: the shifted grid u_k = 1 - k / steps."""
    u = 1 - torch.arange(steps, dtype=torch.float64, device=device) / steps
    return shift_sigma(u, shift).float()


def draw_sigma(batch: dict, purpose: str, shift: float, steps: int | None = None) -> Tensor:
    """One sigma per sample, fp32 ``[B]`` in (0, 1], keyed by the sample. ``steps`` draws from ``sigma_grid`` instead of
    from all of (0, 1]."""
    u = 1 - keyed_rand(batch, purpose)
    if steps is not None:
        u = (u * steps).ceil() / steps
    return shift_sigma(u, shift)


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """``x_t`` fp32, shaped as ``x0`` ``[B, ...]``; ``sigma`` ``[B]``."""
    s = sigma.float().view(-1, *[1] * (x0.ndim - 1))
    return (1 - s) * x0.float() + s * noise.float()


def velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """The target ``noise - x_0``, fp32."""
    return noise.float() - x0.float()


def timestep(sigma: Tensor) -> Tensor:
    """fp32 ``[B]`` in [0, 1000]."""
    return sigma.float() * TIMESTEPS


def bell_weight(sigma: Tensor, shift: float) -> Tensor:
    """Weight of the loss over the timestep: a bell around t = 500, 0 at t = 1000, of mean 1 over the shifted grid of
    1000 steps (DiffSynth-Studio's ``bsmntw``). fp32, shaped as ``sigma``."""
    lowest, mean = _bell_constants(shift)
    return ((_bell(timestep(sigma)) - lowest) / mean).clamp_min(0)


def velocity_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, fp32 ``[B]``."""
    return (prediction.float() - target).square().flatten(1).mean(1)


def _bell(t: Tensor) -> Tensor:
    return torch.exp(-2 * ((t - TIMESTEPS / 2) / _BELL_WIDTH) ** 2)


@functools.cache
def _bell_constants(shift: float) -> tuple[float, float]:
    t = [TIMESTEPS * shift * u / (1 + (shift - 1) * u) for u in (1 - k / TIMESTEPS for k in range(TIMESTEPS))]
    bell = [math.exp(-2 * ((x - TIMESTEPS / 2) / _BELL_WIDTH) ** 2) for x in t]
    lowest = min(bell)
    return lowest, sum(b - lowest for b in bell) / len(bell)
