"""Sampling of FantasyWorld: the loop over a ``predict``, guidance, and where the geometry is read.

``predict`` is ``FantasyWorld.predict`` or what has its arguments. The geometry stream runs in every step, as it feeds
the video; the dense heads run where depth and points are asked for, ``frames`` of length 0 leaves them out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from stagecoach.models.common.noise import FlowMatching, OnStep, denoise, mix_guidance

INFERENCE_STEPS = 50
INFERENCE_SIGMA = 5 / (INFERENCE_STEPS + 4)
"""0.0926: the last of 50 steps at shift 5, where the published inference reads the geometry."""

Predict = Callable[..., dict[str, Any]]
Conditions = Mapping[str, Tensor | None]
"""``text``, ``extrinsics``, ``intrinsics``, ``camera_given``, ``image_latent``, ``image_states`` as ``FantasyWorld.
predict`` takes them, ``[B, ...]`` each; for ``sample`` besides ``negative_text``, shaped as the text, without which the
negative pass has zeros, as training withholds the text."""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (arXiv 2207.12598). ``text`` scales the step from the negative text to the text, camera
    and picture given on both sides, as published; up to 1 there is no negative pass, as in diffusers.

    With ``camera``, three passes: v = v(negative, no camera) + ``text`` (v(text, no camera) - v(negative, no camera)) +
    ``camera`` (v(text, camera) - v(text, no camera)). ``layout``: passes in one batch, which reads the weights once, or
    one after the other, which holds half (or a third) of the activations."""

    text: float = 5.0
    camera: float | None = None
    layout: Literal["together", "sequential"] = "sequential"

    def __post_init__(self) -> None:
        if self.layout not in ("together", "sequential"):
            raise ValueError(f"cfg_batch is {self.layout!r}, expected 'together' or 'sequential'")

    @property
    def passes(self) -> tuple[tuple[bool, bool], ...]:
        """Whether text and camera are given, from the plainest pass to the full one."""
        without = () if self.camera is None else ((True, False),)
        negative = ((False, self.camera is None),) if self.text > 1 else ()
        return (*negative, *without, (True, True))

    def mix(self, velocities: Sequence[Tensor]) -> Tensor:
        """One velocity of those of the ``passes``."""
        scales = [*([self.text] if self.text > 1 else []), *([] if self.camera is None else [self.camera])]
        return mix_guidance(velocities, scales)


@dataclass(frozen=True)
class Sample:
    """Clean ``latents`` fp32 ``[B, 16, f, h, w]``; ``geometry``, what ``predict`` gave but the video, read at the level
    ``sigma_read`` in the full pass of the last step; None of both where no frames were asked for."""

    latents: Tensor
    geometry: dict[str, Any] | None
    sigma_read: float | None


@torch.no_grad()
def sample(
    predict: Predict,
    conditions: Conditions,
    noise: Tensor,
    process: FlowMatching,
    steps: int = INFERENCE_STEPS,
    guidance: Guidance = Guidance(),
    solver: str | None = None,
    frames: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Sample:
    """Videos of the standard normal ``noise`` ``[B, 16, f, h, w]``, and the geometry of their ``frames`` ``[B, K]``.

    ``conditions`` are read again in each step. ``on_step`` and ``solver``: see ``denoise``, which calls the network."""
    nothing = torch.zeros(len(noise), 0, dtype=torch.int64, device=noise.device)
    read: dict[str, Any] = {}

    def velocity(x: Tensor, level: Tensor, k: int) -> Tensor:
        reads = frames is not None and k == steps - 1
        passes = [_given(conditions, *which) for which in guidance.passes]
        groups = [[each] for each in passes]
        if guidance.layout == "together":  # but for the pass that the geometry is read in
            groups = [group for group in (passes[:-1], passes[-1:]) if group] if reads else [passes]
        velocities: list[Tensor] = []
        for i, group in enumerate(groups):
            count = len(group)
            asked = frames if frames is not None and reads and i == len(groups) - 1 else nothing
            found = predict(
                x.repeat(count, *[1] * (x.ndim - 1)),
                level.repeat(count),
                frames=asked.repeat(count, 1),
                **_joined(group),
            )
            velocities += found.pop("video").float().chunk(count)
            if asked is not nothing:
                read.update(found, sigma=float(level[0]) / process.timesteps)
        return guidance.mix(velocities)

    latents = denoise(process, velocity, noise, steps, solver, on_step)
    sigma = read.pop("sigma", None)
    return Sample(latents, read or None, sigma)


@torch.no_grad()
def read_geometry(
    predict: Predict,
    conditions: Conditions,
    latents: Tensor,
    noise: Tensor,
    process: FlowMatching,
    frames: Tensor,
    sigma: float = INFERENCE_SIGMA,
) -> dict[str, Any]:
    """What ``predict`` gives for the ``frames`` ``[B, K]`` of clean ``latents`` ``[B, 16, f, h, w]`` made noisy with
    ``noise`` at ``sigma``: geometry of given videos."""
    level = torch.full((len(latents),), sigma, device=latents.device)
    noised = process.mix(latents, noise, level)
    return predict(noised.x, noised.level, frames=frames, **conditions)


def _given(conditions: Conditions, text: bool, camera: bool) -> dict[str, Tensor | None]:
    """The conditions of one pass."""
    given = dict(conditions)
    negative = given.pop("negative_text", None)
    if not text:
        given["text"] = torch.zeros_like(given["text"]) if negative is None else negative
    if not camera:
        given["camera_given"] = torch.zeros_like(given["camera_given"])
    return given


def _joined(group: Sequence[dict[str, Tensor | None]]) -> dict[str, Tensor | None]:
    first = group[0]
    return {name: None if first[name] is None else torch.cat([given[name] for given in group]) for name in first}
