"""Layers of our own beside 16-bit backbones: they compute in the dtype of their input, whatever their weights are held
in. An engine casts what trains; what an earlier stage trained stays in fp32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class OwnLinear(nn.Linear):
    """Xavier weights times ``gain``, biases of zero."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__(inputs, outputs, bias=bias)
        nn.init.xavier_uniform_(self.weight, gain=gain)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class OwnConv2d(nn.Conv2d):
    """First values are PyTorch's, or zeros."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int | None = None, zero: bool = False
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=kernel // 2 if padding is None else padding)
        if zero:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class OwnLayerNorm(nn.LayerNorm):
    """Computes in fp32 and returns its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps).to(
            x.dtype
        )


class OwnGroupNorm(nn.GroupNorm):
    """Computes in fp32 and returns its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)
