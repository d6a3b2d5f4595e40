"""Features of music at mean 0 and variance 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONSTANT = 1e-8
"""A feature whose variance is below this part of its mean square is taken as constant."""


class MusicNorm(nn.Module):
    """``(music - shift) * scale``: each feature at mean 0 and variance 1 over the training split, from where on both
    train. In fp32: stored features reach hundreds, of which 16 bits would leave little."""

    def __init__(self, music_dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(music_dim))
        self.scale = nn.Parameter(torch.ones(music_dim))

    def forward(self, music: Tensor) -> Tensor:
        return (music.float() - self.shift.float()) * self.scale.float()

    @torch.no_grad()
    def fit(self, music_sum: Tensor, music_square_sum: Tensor, frame_count: int) -> None:
        """From sums ``[Dm]`` over ``frame_count`` frames. A constant feature keeps a scale of 1. Raises
        ``ValueError`` where the sums are not of this many features or of no frame."""
        total, squares = (torch.as_tensor(s, dtype=torch.float64) for s in (music_sum, music_square_sum))
        if total.shape != self.shift.shape or squares.shape != self.shift.shape or frame_count < 1:
            raise ValueError(
                f"music statistics of {tuple(total.shape)} features over {frame_count} frames found, "
                f"expected {self.shift.numel()} features over at least one; set m2p.music_dim to what "
                "the shards hold"
            )
        mean, power = total / frame_count, squares / frame_count
        variance = power - mean.square()
        varies = variance > CONSTANT * power
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(varies, variance, 1.0).rsqrt())
