"""Sampling of MoviePostProduction: FLUX's loop over a ``predict``, with references in its first steps.

``predict`` is ``MoviePostNetwork.predict`` or what has its arguments.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stagecoach.models.common.noise import FlowMatching, OnStep, denoise, mix_guidance, resolution_shift
from stagecoach.models.movie_post_production.step import token_count, without_references

STEPS = 28
Predict = Callable[..., dict[str, Tensor]]
Conditions = Mapping[str, Any]
"""``t5``, ``pooled`` and ``instances`` as ``MoviePostNetwork.predict`` takes them; with guidance on the text besides
``negative_t5`` and ``negative_pooled``."""


@dataclass(frozen=True)
class Guidance:
    """``embedded``: the scale that the network is given, as FLUX.1-dev is distilled for. ``text`` above 1 adds a pass
    with the negative text, the references on both sides, as diffusers' ``true_cfg_scale``. ``references`` adds one
    without them, in the steps that have them: v = v(text, none) + ``references`` (v(text, all) - v(text, none)); with
    both, v(negative, none) is the plainest pass and ``text`` leads from it to v(text, none)."""

    embedded: float = 3.5
    text: float = 1.0
    references: float | None = None

    def passes(self, referenced: bool) -> tuple[list[tuple[bool, bool]], list[float]]:
        """Whether text and references are given, from the plainest pass to the fullest, and the scales between."""
        chosen, scales = [(True, True)], []
        if referenced and self.references is not None:
            chosen, scales = [(True, False), *chosen], [self.references]
        if self.text > 1:
            chosen, scales = [(False, chosen[0][1]), *chosen], [self.text, *scales]
        return chosen, scales


@dataclass(frozen=True)
class Sample:
    """Clean ``latents`` fp32 ``[B, 16, h, w]``, and ``alpha`` fp32 ``[B, N]`` of the references in the first step."""

    latents: Tensor
    alpha: Tensor


def shown_steps(part: float, steps: int) -> int:
    """In how many of the steps, from the first, references are shown: the nearest to that ``part``, at least one."""
    return max(round(part * steps), 1)


@torch.no_grad()
def sample(
    predict: Predict,
    conditions: Conditions,
    noise: Tensor,
    steps: int = STEPS,
    guidance: Guidance = Guidance(),
    layout_part: float = 1.0,
    layout_scale: float = 1.0,
    solver: str | None = None,
    sigmas: Sequence[float] | None = None,
    on_step: OnStep | None = None,
) -> Sample:
    """Pictures of the standard normal ``noise`` ``[B, 16, h, w]``. ``sigmas``: of the steps, before they are moved by
    the number of tokens; None for 1, ..., 1 / steps. ``conditions`` are read again in every step. ``on_step`` and
    ``solver``: see ``denoise``, which calls the network."""
    path = None if sigmas is None else tuple(map(float, sigmas))
    process = FlowMatching(resolution_shift(token_count(noise)), timesteps=1.0, path=path)
    shown = shown_steps(layout_part, steps)
    referenced = bool(conditions["instances"]["valid"].any())
    alpha: list[Tensor] = []

    def velocity(x: Tensor, level: Tensor, k: int) -> Tensor:
        instances = conditions["instances"] if k < shown else without_references(conditions["instances"])
        passes, scales = guidance.passes(referenced and k < shown)
        found = []
        for text, shows in passes:
            names = ("t5", "pooled") if text else ("negative_t5", "negative_pooled")
            given = instances if shows else without_references(instances)
            scale = torch.full_like(level, guidance.embedded)
            prediction = predict(x, level, scale, *(conditions[name] for name in names), given, layout_scale)
            found.append(prediction["velocity"].float())
        if k == 0:
            alpha.append(prediction["alpha"].float())
        return mix_guidance(found, scales)

    latents = denoise(process, velocity, noise, steps, solver, on_step)
    return Sample(latents, alpha[0])
