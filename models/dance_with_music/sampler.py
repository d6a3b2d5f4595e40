"""Videos from noise: the noise processes of the backbones, classifier-free guidance, and long dances in windows that
overlap. Previews and the pipeline call the same loop.

What conditions a video but does not depend on its noise - the reference net's features, those of the guidance
encoders, the tokens of the face - is made once, not in every step, window and pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stagecoach.models.common.noise import Ddpm, Edm, NoiseProcess, OnStep, denoise, mix_guidance
from stagecoach.models.dance_with_music.config import DanceConfig, DiffusionConfig
from stagecoach.models.dance_with_music.windows import Windows, triangle

Conditions = Mapping[str, Any]
Call = Callable[..., Any]
"""A network as its methods are called: ``call("predict", x, level, conditions, features)``; a pipeline's component is
one, so that hooks of offloading see it."""


@dataclass(frozen=True)
class Pass:
    """What the denoiser is given in one pass: ``conditions`` but for the rendered guidance, and ``features`` as
    ``DanceNetwork.predict`` takes them; those of ``guidance`` may be on the CPU."""

    conditions: Conditions
    features: Mapping[str, Any]


def make_process(config: DanceConfig) -> NoiseProcess:
    """``champ``: DDPM as CHAMP has it (arXiv 2403.14781); ``svd``: EDM as StableAnimator does (arXiv 2411.17697)."""
    own = config.diffusion
    return Edm() if config.backbone == "svd" else Ddpm(own.weighting, own.snr_gamma, own.noise_offset)


def make_windows(config: DanceConfig, length: int | None = None, overlap: int | None = None) -> Windows:
    """Those of ``config.sampling`` where no others are given, with frame 0 in each for backbone ``svd``."""
    own = config.sampling
    return Windows(
        own.context_length if length is None else length,
        own.context_overlap if overlap is None else overlap,
        config.backbone == "svd",
    )


@torch.no_grad()
def draw(network: nn.Module, noise: Tensor, conditions: Conditions) -> Tensor:
    """Scaled latents fp32 ``[B, T, 4, h, w]`` from standard normal ``noise`` of that shape, as ``config.sampling`` has
    it. The network is called as often, no matter what the conditions hold: once per step and window, with guidance on
    twice as many samples."""
    config = network.config

    def call(name: str, *inputs: Any) -> Any:
        return getattr(network, name)(*inputs)

    guidance = network.guide(conditions, noise.shape[-2:])
    passes = make_passes(call, conditions, guidance, config.diffusion, config.sampling.guidance_scale)
    scale, windows = config.sampling.guidance_scale, make_windows(config)
    return sample(call, passes, noise, make_process(config), config.sampling.steps, scale, windows)


@torch.no_grad()
def sample(
    call: Call,
    passes: Sequence[Pass],
    noise: Tensor,
    process: NoiseProcess,
    steps: int,
    scale: float | Tensor,
    windows: Windows,
    layout: Literal["together", "sequential"] = "together",
    solver: str | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Scaled latents fp32 ``[B, T, 4, h, w]`` of the standard normal ``noise`` of that shape.

    Args:
        passes: the given one, and behind it the null, where there is guidance.
        scale: of classifier-free guidance, null + ``scale`` (given - null); a number, or one for each frame ``[T]``.
        windows: are mixed with triangular weights in each step.
        layout: both passes in one batch, or one after the other, which holds half of the activations.
        solver, on_step: see ``denoise``, which is the loop.
    """
    groups = [passes] if layout == "together" else [[each] for each in passes]
    joined = [_joined(group) for group in groups]
    steps_of = torch.as_tensor(scale, device=noise.device, dtype=torch.float32)
    scales = steps_of.expand(noise.shape[1])[:, None, None, None]

    def predict_window(x: Tensor, level: Tensor, frames: Tensor | slice) -> Tensor:
        found: list[Tensor] = []
        for group, (conditions, features) in zip(groups, joined, strict=True):
            count = len(group)
            guidance = torch.cat([each.features["guidance"][:, frames].to(x.device) for each in group])
            given = {**features, "guidance": guidance}
            out = call("predict", x.repeat(count, 1, 1, 1, 1), level.repeat(count), conditions, given)
            found += out.float().chunk(count)
        return mix_guidance(found[::-1], [scales[frames]] * (len(found) - 1))

    def predict(x: Tensor, level: Tensor, k: int) -> Tensor:
        places = windows.at(x.shape[1], k)
        if len(places) == 1:
            return predict_window(x, level, slice(None))
        total, weights = torch.zeros_like(x), x.new_zeros(x.shape[1], 1, 1, 1)
        for frames in places:
            weight = triangle(len(frames)).to(x)[:, None, None, None]
            total[:, frames] += weight * predict_window(x[:, frames], level, frames)
            weights[frames] += weight
        return total / weights

    return denoise(process, predict, noise, steps, solver, on_step)


def make_passes(
    call: Call, conditions: Conditions, guidance: Tensor, dropout: DiffusionConfig, scale: float
) -> list[Pass]:
    """The passes of ``sample`` at guidance ``scale``, 1 for none, of a network's ``conditions`` and what it makes of
    their ``guidance``. Only what the null shows of the photo beside another embedding is made once more; which that is
    depends on ``dropout`` alone, so that all ranks call the same."""
    photo = call("photo_features", conditions)
    given = Pass(_shown(conditions), {**photo, "guidance": guidance})
    if scale == 1:
        return [given]
    null = unconditional(conditions, dropout)
    if dropout.drop_embedding > 0 and not (dropout.drop_face > 0 and dropout.drop_reference > 0):
        photo = call("photo_features", null)
    elif dropout.drop_face > 0:
        photo = {**photo, "tokens": torch.zeros_like(photo["tokens"])}
    if dropout.drop_guidance > 0:
        guidance = guidance.new_zeros(()).expand_as(guidance)
    return [given, Pass(_shown(null), {**photo, "guidance": guidance})]


def unconditional(conditions: Conditions, dropout: DiffusionConfig) -> dict[str, Any]:
    """The conditions with the nulls of training in place of those that training drops. One that it never drops stays:
    the network has not seen what is without."""
    dropped = {
        "reference_given": dropout.drop_reference,
        "embedding_given": dropout.drop_embedding,
        "face_given": dropout.drop_face,
        "guidance_given": dropout.drop_guidance,
    }
    return dict(conditions) | {name: torch.zeros_like(conditions[name]) for name, rate in dropped.items() if rate > 0}


def _shown(conditions: Conditions) -> dict[str, Any]:
    """Without the rendered guidance, which the features are made of."""
    return {name: value for name, value in conditions.items() if name != "guidance"}


def _joined(passes: Sequence[Pass]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Conditions and features of all passes along the batch, but for those of the guidance, which go by frames."""
    features = [{name: v for name, v in each.features.items() if name != "guidance"} for each in passes]
    return _cat([each.conditions for each in passes]), _cat(features)


def _cat(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is no tensor is the same for all."""
    found: dict[str, Any] = {}
    for name, first in values[0].items():
        each = [value[name] for value in values]
        if isinstance(first, Mapping):
            found[name] = _cat(each)
        else:
            found[name] = torch.cat(each) if isinstance(first, Tensor) else first
    return found
