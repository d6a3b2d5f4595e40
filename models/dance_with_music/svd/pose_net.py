"""StableAnimator's PoseNet (arXiv 2411.17697): skeleton pictures to what is added behind SVD's first convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stagecoach.models.dance_with_music.own_layers import OwnConv2d

CONVOLUTIONS = (
    (3, 3, 3, 1),
    (3, 16, 4, 2),
    (16, 16, 3, 1),
    (16, 32, 4, 2),
    (32, 32, 3, 1),
    (32, 64, 4, 2),
    (64, 64, 3, 1),
    (64, 128, 3, 1),
)
"""Channels in and out, kernel and stride; padding is 1."""
SCALE = 2.0


class PoseNet(nn.Module):
    """He's first values, but for the last convolution, which starts at zero; its output is multiplied by a learned
    number. Modules have the published weights' names; 205,557 parameters at 320 channels."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width, kernel, stride in CONVOLUTIONS:
            layer = OwnConv2d(inputs, width, kernel, stride, padding=1)
            nn.init.normal_(layer.weight, std=(2 / (kernel * kernel * inputs)) ** 0.5)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.SiLU()]
        self.conv_layers = nn.Sequential(*layers)
        self.final_proj = OwnConv2d(CONVOLUTIONS[-1][1], outputs, 1, zero=True)
        self.scale = nn.Parameter(torch.full((1,), SCALE))

    def forward(self, condition: Tensor) -> Tensor:
        """``[N, 3, H, W]`` in [0, 1] -> ``[N, outputs, H / 8, W / 8]``."""
        return self.final_proj(self.conv_layers(condition)) * self.scale.to(condition.dtype)
