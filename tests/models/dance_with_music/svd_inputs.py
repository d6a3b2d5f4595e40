"""Arguments of ``SvdDenoiser`` with random content, and denoisers with weights in place."""

import torch
from diffusers import UNetSpatioTemporalConditionModel

from stagecoach.models.dance_with_music.config import SIZES
from stagecoach.models.dance_with_music.svd.unet import SvdDenoiser, svd_base
from tests.models.dance_with_music.champ_inputs import copies

TINY = SIZES["tiny-svd"]


def diffusers_unet() -> UNetSpatioTemporalConditionModel:
    """diffusers' own, at random; gains, biases and mixing factors too, so that none can be mixed up unseen."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        unet = UNetSpatioTemporalConditionModel(**TINY.unet.spatio_temporal())
        for parameter in unet.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return unet.requires_grad_(False)


def make_denoiser(unet: UNetSpatioTemporalConditionModel, dtype: torch.dtype = torch.float32) -> SvdDenoiser:
    """With the weights of ``unet``, adapters at their initial values."""
    denoiser = SvdDenoiser(TINY, svd_base(TINY.unet), dtype)
    state = {name: value.clone() for name, value in unet.state_dict().items()}
    state |= {name: state[source].clone() for name, source in copies(denoiser).items()}
    denoiser.load_state_dict(state, assign=True)
    return denoiser.to(dtype)


def make_inputs(frames: int = 3, side: tuple[int, int] = (8, 8), b: int = 2, seed: int = 0) -> dict:
    g = torch.Generator().manual_seed(seed)
    h, w = side
    everyone = torch.ones(b, dtype=torch.bool)
    dim = TINY.unet.cross_dim
    return {
        "x": torch.randn(b, frames, 4, h, w, generator=g),
        "level": torch.randn(b, generator=g),
        "conditions": {
            "references": torch.randn(b, 1, 4, h, w, generator=g),
            "reference_given": everyone,
            "embedding": torch.randn(b, 1, dim, generator=g),
            "embedding_given": everyone,
            "identity_scale": 1.0,
        },
        "guidance": torch.randn(b, frames, TINY.unet.widths[0], h, w, generator=g),
        "tokens": torch.randn(b, 4, dim, generator=g),
    }
