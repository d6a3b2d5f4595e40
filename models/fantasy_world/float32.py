"""Layers that compute in fp32 whatever their weights are held in: for physical units and for time."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Float32Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class Float32Pointwise(nn.Conv2d):
    """1x1 convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.float(), self.weight.float(), self.bias.float())
