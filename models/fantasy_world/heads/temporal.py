"""From latent frames to video frames: causal temporal upsampling by four, the way the Wan VAE's decoder does it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv3d(nn.Conv3d):
    """Convolution that sees this frame and earlier ones; zeros stand before the first. Space keeps its size."""

    def __init__(self, channels: int, out_channels: int, time: int, space: int) -> None:
        super().__init__(channels, out_channels, (time, space, space), padding=(0, space // 2, space // 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 0, 0, 0, self.kernel_size[0] - 1, 0)))


class ChannelNorm(nn.Module):
    """RMS norm over the channels of ``[B, C, ...]``, one gain per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        inverse = torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6).type_as(x)
        return x * inverse * self.gain.view(-1, *(1,) * (x.ndim - 2))


class TemporalDoubling(nn.Module):
    """``[B, C, f, h, w]`` -> ``[B, C, 2f - 1, h, w]``: each frame but the first becomes two neighbours."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample = CausalConv3d(channels, 2 * channels, 3, 1)
        self.norm = ChannelNorm(channels)
        self.conv = CausalConv3d(channels, channels, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        pairs = self.upsample(x)[:, :, 1:].unflatten(1, (2, -1))  # [B, 2, C, f - 1, h, w]
        x = torch.cat([x[:, :, :1], pairs.movedim(1, 3).flatten(2, 3)], 2)
        return x + self.conv(F.silu(self.norm(x)))


class TemporalUpsampler(nn.Module):
    """``[B, C, f, h, w]`` -> ``[B, C, 4(f - 1) + 1, h, w]``. Latent frame k reaches output frames from 4(k - 1) + 1
    on, and none before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, 1, 1)
        self.first, self.second = TemporalDoubling(channels), TemporalDoubling(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.conv(x)))
