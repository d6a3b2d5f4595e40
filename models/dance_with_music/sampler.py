"""The noise processes of the backbones, and videos from noise: classifier-free guidance, and long clips in contexts
that overlap."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stagecoach.models.common.noise import Ddpm, Edm, NoiseProcess, denoise, mix_guidance
from stagecoach.models.dance_with_music.config import DanceConfig, DiffusionConfig, SamplingConfig

Conditions = Mapping[str, Any]
Predict = Callable[..., Tensor]
"""(x ``[B, T, 4, h, w]``, level ``[B]``, step) -> what the network makes of them."""


def make_process(config: DanceConfig) -> NoiseProcess:
    """``champ``: DDPM as CHAMP has it (arXiv 2403.14781); ``svd``: EDM as StableAnimator does (arXiv 2411.17697)."""
    own = config.diffusion
    return Edm() if config.backbone == "svd" else Ddpm(own.weighting, own.snr_gamma, own.noise_offset)


@torch.no_grad()
def draw(network: nn.Module, noise: Tensor, conditions: Conditions) -> Tensor:
    """Scaled latents fp32 ``[B, T, 4, h, w]`` from standard normal ``noise`` of that shape. The network is called as
    often, no matter what the conditions hold: once per step and context, with guidance on twice as many samples."""
    config = network.config
    predict = guided(network.denoise, conditions, unconditional(conditions, config.diffusion), config.sampling)
    return denoise(make_process(config), predict, noise, config.sampling.steps)


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


def guided(
    denoise: Callable[[Tensor, Tensor, Conditions], Tensor],
    conditions: Conditions,
    null: Conditions,
    settings: SamplingConfig,
) -> Predict:
    """Classifier-free guidance, context by context: null + ``guidance_scale`` (given - null), both in one call."""
    both = conditions if settings.guidance_scale == 1 else _stacked(conditions, null)

    def predict_context(x: Tensor, level: Tensor, frames: slice) -> Tensor:
        given = _cut(both, frames)
        if settings.guidance_scale == 1:
            return denoise(x, level, given).float()
        with_it, without = denoise(torch.cat([x, x]), torch.cat([level, level]), given).float().chunk(2)
        return mix_guidance([without, with_it], [settings.guidance_scale])

    def predict(x: Tensor, level: Tensor, step: int = 0) -> Tensor:
        slices = contexts(x.shape[1], settings.context_length, settings.context_overlap)
        total, count = torch.zeros_like(x), x.new_zeros(x.shape[1])
        for frames in slices:
            total[:, frames] += predict_context(x[:, frames], level, frames)
            count[frames] += 1
        return total / count[:, None, None, None]

    return predict


def contexts(frames: int, length: int, overlap: int) -> list[slice]:
    """Runs of ``length`` frames that cover ``frames``, each starting ``length - overlap`` after the one before; the
    last ends with the clip and so may share more. One where the clip is no longer than that."""
    last = max(frames - length, 0)
    return [slice(start, min(start + length, frames)) for start in (*range(0, last, length - overlap), last)]


def _stacked(given: Conditions, null: Conditions) -> dict[str, Any]:
    """Both along the batch; what is no tensor is the same for both."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            found[name] = _stacked(value, null[name])
        else:
            found[name] = torch.cat([value, null[name]]) if isinstance(value, Tensor) else value
    return found


def _cut(conditions: Conditions, frames: slice) -> dict[str, Any]:
    """What ``frames`` are given: only the guidance goes by frames."""
    return dict(conditions) | {"guidance": {name: value[:, frames] for name, value in conditions["guidance"].items()}}
