"""A self-attention transformer over the pixels of each frame, under the names of diffusers' Transformer2DModel."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.models.common.attention import Attend
from stagecoach.models.dance_with_music.own_layers import OwnConv2d, OwnGroupNorm, OwnLayerNorm, OwnLinear

FEED_FORWARD = 4


class SpatialTransformer(nn.Module):
    """GroupNorm, 1 x 1 convolution in, one block, 1 x 1 convolution out, residual. Where ``heads`` do not divide
    ``channels`` the block is as wide as the multiple of ``heads`` below."""

    def __init__(self, channels: int, heads: int, groups: int = 32) -> None:
        super().__init__()
        inner = channels // heads * heads
        self.norm = OwnGroupNorm(math.gcd(groups, channels), channels, eps=1e-6)
        self.proj_in = OwnConv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList([SelfAttentionBlock(inner, heads)])
        self.proj_out = OwnConv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w]``."""
        size = x.shape[-2:]
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, size))


class SelfAttentionBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = OwnLayerNorm(dim)
        self.attn1 = SelfAttention(dim, heads)
        self.norm3 = OwnLayerNorm(dim)
        self.ff = GatedFeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, tokens, dim]``."""
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (OwnLinear(dim, dim, bias=False) for _ in range(3))
        self.attend = Attend()
        self.to_out = nn.ModuleList([OwnLinear(dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](self.attend(q, k, v))


class GatedFeedForward(nn.Module):
    """GEGLU (arXiv 2002.05202). ``net.1`` is where diffusers has a dropout."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [GatedLinear(dim, FEED_FORWARD * dim), nn.Identity(), OwnLinear(FEED_FORWARD * dim, dim)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class GatedLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = OwnLinear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)
