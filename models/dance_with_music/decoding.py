"""Pixels of a dance, a few frames at a time."""

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor

from stagecoach.models.dance_with_music.helpers import AT_ONCE


@torch.no_grad()
def decode_frames(
    vae: AutoencoderKL | AutoencoderKLTemporalDecoder, latents: Tensor, chunk: int | None = None
) -> Iterator[Tensor]:
    """Pixels of scaled latents ``[T, 4, h, w]``, fp32 ``[n, 3, H, W]`` in about -1..1 on the CPU. ``chunk`` frames are
    decoded at once, and joined by Stable Video Diffusion's decoder; None for ``AT_ONCE``, each by itself."""
    device = get_module_execution_device(vae)
    for part in latents.split(chunk or AT_ONCE):
        z = (part / vae.config.scaling_factor).to(device, vae.dtype)
        joined = {}
        if isinstance(vae, AutoencoderKLTemporalDecoder):
            joined = {"num_frames": 1 if chunk is None else len(part)}
        yield vae.decode(z, return_dict=False, **joined)[0].float().cpu()
