"""The geometry stream's layout: per latent frame one camera token, four register tokens, then the patch tokens."""

import math

import torch
from torch import Tensor, nn

from stagecoach.models.fantasy_world.config import SPECIAL_TOKENS

TOKEN_STD, PUBLISHED_STD = 0.02, 1e-6


class SpecialTokens(nn.Module):
    """Learned camera and register tokens, one set for the first latent frame (the reference of all cameras) and one
    for the others (VGGT, section 3.1, per latent frame instead of per image).

    With ``timed`` each also carries a sinusoidal code of its latent frame, as large as it is itself at first. Where all
    attention is over the whole clip and special tokens have no rotation, those of the frames after the first would
    otherwise be one and the same token in every layer, and no camera path but a constant could be read from them. (The
    aggregator's frame attention tells them apart by itself.)
    """

    def __init__(self, dim: int, timed: bool = False, std: float = TOKEN_STD) -> None:
        super().__init__()
        self.timed = timed
        self.camera = nn.Parameter(std * torch.randn(2, 1, dim))
        self.register = nn.Parameter(std * torch.randn(2, SPECIAL_TOKENS - 1, dim))

    def forward(self, patches: Tensor, camera: Tensor | None = None) -> Tensor:
        """``[B, f, h w, d]`` -> ``[B, f (5 + h w), d]``. ``camera`` ``[B, f, d]`` is added to the camera tokens."""
        batch, frames = patches.shape[:2]
        tokens = torch.cat([self.camera, self.register], 1)
        tokens = torch.cat([tokens[:1], tokens[1:].expand(frames - 1, -1, -1)])  # [f, 5, d]
        if self.timed:
            tokens = tokens + time_code(frames, tokens.shape[2], tokens.device)[:, None].to(tokens.dtype)
        tokens = tokens.to(patches.dtype).expand(batch, -1, -1, -1)
        if camera is not None:
            tokens = torch.cat([tokens[:, :, :1] + camera.to(tokens.dtype)[:, :, None], tokens[:, :, 1:]], 2)
        return torch.cat([tokens, patches], 2).flatten(1, 2)


def time_code(frames: int, dim: int, device: torch.device) -> Tensor:
    """Cosines and sines of the latent frame at frequencies 10000^(-2i / dim), fp32 ``[f, dim]`` with root mean square
    ``TOKEN_STD``."""
    frequency = torch.exp(torch.arange(dim // 2, device=device) * (-math.log(10000.0) / (dim // 2)))
    angle = torch.arange(frames, device=device, dtype=torch.float32)[:, None] * frequency
    return TOKEN_STD * math.sqrt(2.0) * torch.cat([angle.cos(), angle.sin()], 1)


def camera_tokens(x: Tensor, frames: int) -> Tensor:
    """``[B, f (5 + h w), d]`` -> ``[B, f, d]``."""
    return x.unflatten(1, (frames, -1))[:, :, 0]


def patch_tokens(x: Tensor, frames: int) -> Tensor:
    """``[B, f (5 + h w), d]`` -> ``[B, f, h w, d]``."""
    return x.unflatten(1, (frames, -1))[:, :, SPECIAL_TOKENS:]


def beside_patches(x: Tensor, frames: int) -> Tensor:
    """What is to be added to the geometry stream: ``[B, f h w, d]`` -> ``[B, f (5 + h w), d]``, 0 at special tokens."""
    return nn.functional.pad(x.unflatten(1, (frames, -1)), (0, 0, SPECIAL_TOKENS, 0)).flatten(1, 2)
