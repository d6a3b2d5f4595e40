"""FLUX's packing: 2 x 2 latents make one token."""

from __future__ import annotations

from torch import Tensor

from stagecoach.models.movie_post_production.config import PATCH


def pack(latent: Tensor) -> Tensor:
    """``[B, C, 2 h, 2 w]`` -> ``[B, h w, 4 C]``, channel by channel, 2 x 2 inside."""
    b, c, height, width = latent.shape
    x = latent.view(b, c, height // PATCH, PATCH, width // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b, (height // PATCH) * (width // PATCH), c * PATCH * PATCH)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """``[B, h w, 4 C]`` -> ``[B, C, 2 h, 2 w]``."""
    x = tokens.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, (h, w)).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(len(tokens), -1, PATCH * h, PATCH * w)
