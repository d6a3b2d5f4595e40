"""Noise processes: how training makes a clean sample noisy, and how a sampler leads back. Everything is fp32.

A process mixes ``x = a x0 + b noise`` at a noise level per sample and says what the network should predict of it:

- ``FlowMatching``: a = 1 - sigma, b = sigma, predicts noise - x0 (arXiv 2403.03206, section 2);
- ``Ddpm``: a^2 + b^2 = 1, predicts v = a noise - b x0 (arXiv 2202.00512), zero terminal SNR (arXiv 2305.08891);
- ``Edm``: sigma noise added to x0 and scaled by 1 / sqrt(1 + sigma^2) (arXiv 2206.00364). This is the process above
  with a^2 = 1 / (1 + sigma^2): EDM's raw output is v and its weighted error (1 + sigma^2) / sigma^2 (x0' - x0)^2 is
  (v' - v)^2.
"""

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import diffusers
import torch
from torch import Tensor

from stagecoach.models.common.constants import constant
from stagecoach.models.common.keyed import keyed_rand, keyed_randn

TIMESTEPS = 1000
_BELL_WIDTH = 1000.0
_BETAS = (0.00085, 0.012)
_SIGMAS = (0.002, 700.0)
_SIGMA_DATA, _IMAGE_SIDE, _NOISE_SIDES = 0.5, 64, (64, 32)
"""Of StableAnimator's interpolated cosine schedule (arXiv 2301.11093, section 2.3): noise of an image of 64 pixels a
side at the least sigma, of 32 at the largest."""


@dataclass(frozen=True)
class Noised:
    """Noisy samples ``x``, shaped as the clean ones, and what training needs to know of them.

    ``level`` ``[B]`` is what the network takes as its timestep; ``target`` what it should predict; ``weight`` ``[B]``
    that of the squared error; ``signal`` ``[B]`` the signal's share of the variance; a clean sample is ``keep x -
    remove prediction``, with ``[B]`` each."""

    x: Tensor
    level: Tensor
    target: Tensor
    weight: Tensor
    signal: Tensor
    keep: Tensor
    remove: Tensor

    def error(self, prediction: Tensor) -> Tensor:
        """Mean squared error of each sample, unweighted, ``[B]``."""
        return (prediction.float() - self.target).square().flatten(1).mean(1)

    def estimate(self, prediction: Tensor) -> Tensor:
        """The clean samples that ``prediction`` stands for."""
        return _wide(self.keep, self.x) * self.x - _wide(self.remove, self.x) * prediction.float()


class NoiseProcess(ABC):
    """One process with its settings. A level is what ``Noised.level`` is made of: a sigma, or a timestep."""

    solver: str
    """diffusers' scheduler that samples by default, and below the settings that any of them takes."""
    settings: Mapping[str, Any]
    solvers: tuple[str, ...] = ()
    """Schedulers of diffusers that step over this process's own levels; empty where any may be tried."""

    def draw(self, batch: dict, purpose: str) -> Tensor:
        """A level per sample, ``[B]``, keyed by the sample and ``purpose``."""
        return self.level_at(keyed_rand(batch, purpose))

    @abstractmethod
    def level_at(self, u: Tensor) -> Tensor:
        """Quantiles in [0, 1] of the levels of training -> levels, from the least noisy to the noisiest."""

    @abstractmethod
    def mix(self, x0: Tensor, noise: Tensor, level: Tensor) -> Noised:
        """``x0`` and ``noise`` ``[B, ...]`` at ``level`` ``[B]``."""

    def noised(self, batch: dict, x0: Tensor, level: Tensor, purpose: str) -> Noised:
        """``x0`` ``[B, ...]`` at ``level`` ``[B]`` with noise keyed by the sample and ``purpose``."""
        return self.mix(x0, keyed_randn(batch, purpose, x0.shape[1:]), level)

    def drawn(self, batch: dict, x0: Tensor) -> Noised:
        """``x0`` ``[B, ...]`` at the levels and with the noise of a training step."""
        return self.noised(batch, x0, self.draw(batch, "level"), "noise")

    def scheduler(self, steps: int, solver: str | None = None) -> Any:
        """A scheduler of diffusers by its name (None: ``self.solver``), set to ``steps`` steps over this process.
        Raises ``ValueError`` for a name that is not among ``solvers``, or that diffusers does not have."""
        kind = self._solver(solver or self.solver)
        known = inspect.signature(kind.__init__).parameters
        scheduler = kind(**{name: value for name, value in self.settings.items() if name in known})
        self._set_steps(scheduler, steps)
        return scheduler

    def _solver(self, name: str) -> Any:
        kind = getattr(diffusers, name, None)
        steps = isinstance(kind, type) and hasattr(kind, "set_timesteps")
        if not steps or name not in (self.solvers or (name,)):
            known = self.solvers or [n for n in dir(diffusers) if n.endswith("Scheduler")]
            raise ValueError(
                f"scheduler {name!r} does not sample {type(self).__name__}, expected one of {', '.join(known)}, as "
                "diffusers calls them"
            )
        return kind

    def _set_steps(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps)

    def _level(self, scheduler: Any, k: int) -> float:
        """What the network takes as its timestep in step ``k``."""
        return float(scheduler.timesteps[k])


OnStep = Callable[[int, Tensor, Tensor], Tensor | None]


@torch.no_grad()
def denoise(
    process: NoiseProcess,
    predict: Callable[[Tensor, Tensor, int], Tensor],
    noise: Tensor,
    steps: int,
    solver: str | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Clean samples, shaped as the standard normal ``noise`` ``[B, ...]``. ``predict(x, level, k)`` is the network at
    step ``k``, ``level`` ``[B]``. ``on_step(k, t, x)`` follows each step with the scheduler's timestep ``t`` and what
    came of it; a tensor that it returns goes on instead. The one loop of previews, validation and sampling."""
    scheduler = process.scheduler(steps, solver)
    x = noise.float() * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for k, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        level = torch.full((len(x),), process._level(scheduler, k), device=x.device)
        x = scheduler.step(predict(scaled, level, k).float(), t, x).prev_sample
        changed = on_step(k, t, x) if on_step is not None else None
        x = x if changed is None else changed
    return x


def guided(
    predict: Callable[[dict, Tensor, Tensor], Tensor], batch: dict, withheld: dict, scale: float
) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Classifier-free guidance (arXiv 2207.12598) for ``denoise``: from what ``predict(batch, x, level)`` gives for the
    batch whose conditions are ``withheld`` towards what it gives for ``batch``, and beyond, by ``scale``."""

    def both(x: Tensor, level: Tensor, k: int) -> Tensor:
        return mix_guidance([predict(withheld, x, level), predict(batch, x, level)], [scale])

    return both


def mix_guidance(predictions: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """Of passes from the plainest to the fullest: the first, and each step to the next times its scale."""
    mixed = predictions[0]
    for scale, before, after in zip(scales, predictions[:-1], predictions[1:], strict=True):
        mixed = mixed + scale * (after - before)
    return mixed


@dataclass(frozen=True)
class FlowMatching(NoiseProcess):
    """Rectified flow. Levels are sigmas in (0, 1]; the network takes ``timesteps`` times that. ``path``: the u of a
    sampler's steps, if not evenly spaced.

    ``u`` is logit-normal, or uniform on a ``grid`` of so many steps if given, and moved to sigma = shift u /
    (1 + (shift - 1) u). ``weighting`` ``bell`` is a bell around t = 500, 0 at t = 1000, of mean 1 over the shifted grid
    of 1000 steps (DiffSynth-Studio's ``bsmntw``).
    """

    shift: float = 1.0
    sampling: Literal["uniform", "logit_normal"] = "uniform"
    grid: int | None = None
    weighting: Literal["uniform", "bell"] = "uniform"
    timesteps: float = float(TIMESTEPS)
    path: tuple[float, ...] | None = None

    solver = "FlowMatchEulerDiscreteScheduler"
    settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}  # noqa: RUF012
    solvers = (solver, "UniPCMultistepScheduler", "DPMSolverMultistepScheduler")

    def draw(self, batch: dict, purpose: str) -> Tensor:
        if self.sampling == "logit_normal":
            return self.level_at(keyed_randn(batch, purpose, ()).sigmoid())
        u = 1 - keyed_rand(batch, purpose)
        return self.level_at(u if self.grid is None else (u * self.grid).ceil() / self.grid)

    def level_at(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 + (self.shift - 1) * u)

    def share_up_to(self, sigma: float) -> float:
        """Of the draws, those of at most ``sigma``: the distribution function of ``draw``."""
        if sigma >= 1:
            return 1.0
        u = sigma / (self.shift - (self.shift - 1) * sigma)
        if self.sampling == "logit_normal":
            return NormalDist().cdf(math.log(u / (1 - u)))
        return u if self.grid is None else math.floor(u * self.grid) / self.grid

    def mix(self, x0: Tensor, noise: Tensor, level: Tensor) -> Noised:
        x0, noise, sigma = x0.float(), noise.float(), level.float()
        s = _wide(sigma, x0)
        one = torch.ones_like(sigma)
        weight = self.bell(sigma) if self.weighting == "bell" else one
        signal = (1 - sigma).square() / ((1 - sigma).square() + sigma.square())
        return Noised((1 - s) * x0 + s * noise, sigma * self.timesteps, noise - x0, weight, signal, one, sigma)

    def held_out_errors(
        self,
        batch: dict,
        x0: Tensor,
        predict: Callable[[dict, Tensor, Tensor], Tensor],
        sigmas: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    ) -> Tensor:
        """Errors ``[len(sigmas) B]`` of ``predict(batch, x, level)`` at fixed sigmas, with noise fixed per sample."""
        errors = []
        for sigma in sigmas:
            noised = self.noised(batch, x0, torch.full((len(x0),), sigma, device=x0.device), f"val_noise/{sigma}")
            errors.append(noised.error(predict(batch, noised.x, noised.level)))
        return torch.cat(errors)

    def sigmas(self, steps: int) -> Tensor:
        """fp32 ``[steps]``, falling from 1: u = 1, ..., 1 / steps, shifted, as the published loops of Wan and FLUX have
        them. diffusers' own grid shifts its ends as well: 50 steps at shift 5 end at 0.0244 instead of 0.0926."""
        if self.path is None:
            return self.level_at(torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64)).float()
        if len(self.path) != steps:
            raise ValueError(f"{len(self.path)} sigmas given for {steps} steps, expected as many")
        return self.level_at(torch.tensor(self.path, dtype=torch.float64)).float()

    def bell(self, sigma: Tensor) -> Tensor:
        """The weight of ``bell`` at ``sigma`` ``[B]``: fp32 ``[B]``."""
        lowest, mean = _bell_constants(self.shift)
        return ((_bell(sigma * TIMESTEPS) - lowest) / mean).clamp_min(0)

    def _set_steps(self, scheduler: Any, steps: int) -> None:
        if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
            scheduler.set_timesteps(sigmas=self.sigmas(steps).double().numpy())
            return
        scheduler.set_timesteps(steps)
        # Log SNR is infinite at sigma 1; UniPC steps from as far below it.
        scheduler.sigmas = torch.cat([self.sigmas(steps).clamp_max(1 - 1e-6), torch.zeros(1)])
        scheduler.timesteps = scheduler.sigmas[:-1] * TIMESTEPS

    def _level(self, scheduler: Any, k: int) -> float:
        return float(scheduler.sigmas[k] * self.timesteps)


class _VPrediction(NoiseProcess):
    """x = sqrt(a) x0 + sqrt(1 - a) noise, of which the network predicts v."""

    def _mix(self, x0: Tensor, noise: Tensor, signal: Tensor, level: Tensor, weight: Tensor) -> Noised:
        keep, remove = signal.sqrt(), (1 - signal).sqrt()
        a, b = _wide(keep, x0), _wide(remove, x0)
        return Noised(a * x0 + b * noise, level, a * noise - b * x0, weight, signal, keep, remove)


@dataclass(frozen=True)
class Ddpm(_VPrediction):
    """Stable Diffusion's scaled-linear DDPM with zero terminal SNR. Levels are timesteps 0..999.

    ``weighting`` of the squared error in v: ``min_snr``, min(SNR, gamma) / (SNR + 1) (arXiv 2303.09556, section 3.4),
    which is 0 where no signal is left; ``champ``, min(SNR + 1, gamma) / (SNR + 1); ``none``, 1. ``offset``: standard
    deviation of noise that is the same all over a channel (the axis before height and width) and in all frames.
    """

    weighting: Literal["min_snr", "champ", "none"] = "min_snr"
    gamma: float = 5.0
    offset: float = 0.0

    solver = "DDIMScheduler"
    settings = {  # noqa: RUF012
        "beta_start": _BETAS[0],
        "beta_end": _BETAS[1],
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }

    def level_at(self, u: Tensor) -> Tensor:
        return (u * TIMESTEPS).floor()

    def noised(self, batch: dict, x0: Tensor, level: Tensor, purpose: str) -> Noised:
        noise = keyed_randn(batch, purpose, x0.shape[1:])
        if self.offset:
            shape = (*[1] * (x0.ndim - 4), x0.shape[-3], 1, 1)
            noise = noise + self.offset * keyed_randn(batch, f"{purpose}_offset", shape)
        return self.mix(x0, noise, level)

    def mix(self, x0: Tensor, noise: Tensor, level: Tensor) -> Noised:
        signal = signal_by_timestep(x0.device)[level.long()]
        return self._mix(x0.float(), noise, signal, level, self.weight(signal))

    def weight(self, signal: Tensor) -> Tensor:
        """Of the signal's share of the variance; SNR + 1 = 1 / (1 - signal)."""
        snr = signal / (1 - signal)
        if self.weighting == "min_snr":
            return snr.clamp_max(self.gamma) * (1 - signal)
        if self.weighting == "champ":
            return (snr + 1).clamp_max(self.gamma) * (1 - signal)
        return torch.ones_like(signal)


@dataclass(frozen=True)
class Edm(_VPrediction):
    """Stable Video Diffusion's EDM with the sigmas of StableAnimator (arXiv 2411.17697): 0.002 to 700 along the
    interpolated cosine schedule. The network takes ln(sigma) / 4. Sampling steps over Karras' sigmas, rho 7."""

    solver = "EulerDiscreteScheduler"
    settings = {  # noqa: RUF012
        "beta_start": _BETAS[0],
        "beta_end": _BETAS[1],
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "sigma_min": _SIGMAS[0],
        "sigma_max": _SIGMAS[1],
        "timestep_spacing": "leading",
        "timestep_type": "continuous",
        "use_karras_sigmas": True,
    }

    def level_at(self, u: Tensor) -> Tensor:
        u = u.double()
        low, high = (_cosine_logsnr(u, 2 * math.log(side / _IMAGE_SIDE)) for side in _NOISE_SIDES)
        logsnr = torch.lerp(low, high, u)
        return (torch.exp(-logsnr / 2) * _SIGMA_DATA).float()

    def mix(self, x0: Tensor, noise: Tensor, level: Tensor) -> Noised:
        signal = 1 / (1 + level.square())
        return self._mix(x0.float(), noise, signal, 0.25 * level.log(), torch.ones_like(signal))


def resolution_shift(
    tokens: int, base: tuple[int, float] = (256, 0.5), most: tuple[int, float] = (4096, 1.15)
) -> float:
    """e^mu of FLUX's scheduler for a picture of so many tokens: mu goes linearly from 0.5 at 256 to 1.15 at 4096."""
    slope = (most[1] - base[1]) / (most[0] - base[0])
    return math.exp(base[1] + slope * (tokens - base[0]))


def signal_by_timestep(device: torch.device | str = "cpu") -> Tensor:
    """fp32 ``[1000]``: the signal's share of the variance of ``Ddpm``, at last 0 (arXiv 2305.08891, algorithm 1)."""
    return constant(_signals(), torch.device(device))


def signal_at(timestep: int) -> float:
    """The signal's share at ``timestep`` of ``Ddpm``, by which "below this timestep" is asked of any process."""
    return _signals()[min(timestep, TIMESTEPS - 1)]


@functools.cache
def _signals() -> tuple[float, ...]:
    root = torch.linspace(_BETAS[0] ** 0.5, _BETAS[1] ** 0.5, TIMESTEPS, dtype=torch.float64)
    signal = (1 - root.square()).cumprod(0).sqrt()
    scaled = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return tuple(scaled.square().tolist())


def _cosine_logsnr(u: Tensor, shift: float) -> Tensor:
    """Log SNR of the cosine schedule, shifted, falling from that of the least sigma to that of the largest."""
    most, least = (-2 * math.log(sigma / _SIGMA_DATA) - shift for sigma in _SIGMAS)
    first, last = math.atan(math.exp(-0.5 * most)), math.atan(math.exp(-0.5 * least))
    return -2 * torch.log(torch.tan(first + u * (last - first))) + shift


def _bell(t: Tensor) -> Tensor:
    return torch.exp(-2 * ((t - TIMESTEPS / 2) / _BELL_WIDTH) ** 2)


@functools.cache
def _bell_constants(shift: float) -> tuple[float, float]:
    t = [TIMESTEPS * shift * u / (1 + (shift - 1) * u) for u in (1 - k / TIMESTEPS for k in range(TIMESTEPS))]
    bell = [math.exp(-2 * ((x - TIMESTEPS / 2) / _BELL_WIDTH) ** 2) for x in t]
    lowest = min(bell)
    return lowest, sum(b - lowest for b in bell) / len(bell)


def _wide(per_sample: Tensor, like: Tensor) -> Tensor:
    """``[B]`` -> ``[B, 1, ...]`` with as many axes as ``like``."""
    return per_sample.view(-1, *[1] * (like.ndim - 1))
