"""AnimateDiff's motion modules: attention over the frames of one place, and their table of positions."""

from __future__ import annotations

import math

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from stagecoach.models.dance_with_music.champ.attention import plain_attention


class Positions(nn.Module):
    """Sinusoids as AnimateDiff's, in place of diffusers' module of the same name. The table is computed, so that it is
    in no checkpoint and may be longer than that of the published weights."""

    def __init__(self, dim: int, length: int, device: torch.device | str) -> None:
        super().__init__()
        self.register_buffer("pe", position_table(dim, length).to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[M, T, C]`` -> the same."""
        return x + self.pe[:, : x.shape[1]].to(x.dtype)


def position_table(dim: int, length: int) -> Tensor:
    """fp32 ``[1, length, dim]``: sine in even, cosine in odd columns."""
    with torch.device("cpu"):
        rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
        angles = torch.arange(length).unsqueeze(1) * rate
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).unsqueeze(0)


def use_positions(unet: nn.Module, length: int, device: torch.device | str) -> None:
    """Give every motion module inside ``unet`` a table of ``length`` frames on ``device``."""
    for module in unet.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            for block in module.transformer_blocks:
                block.pos_embed = Positions(block.dim, length, device)


def temporal(module: AnimateDiffTransformer3D, x: Tensor, frames: int) -> Tensor:
    """``x`` ``[B T, C, h, w]`` -> the same; as diffusers' forward, operation by operation."""
    c, h, w = x.shape[1:]
    y = module.norm(x.unflatten(0, (-1, frames)).permute(0, 2, 1, 3, 4))
    y = module.proj_in(y.permute(0, 3, 4, 2, 1).reshape(-1, frames, c))
    for block in module.transformer_blocks:
        for norm, attention in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
            normed = block.pos_embed(norm(y))
            y = plain_attention(attention, normed, normed) + y
        y = block.ff(block.norm3(y)) + y
    y = module.proj_out(y).reshape(-1, h, w, frames, c).permute(0, 3, 4, 1, 2).contiguous()
    return y.reshape(x.shape) + x
