"""Layers of our own next to 16-bit backbones: they compute in the dtype of their input, no matter what their weights
are held in. An engine casts what trains; what an earlier stage trained stays in fp32."""

import torch.nn.functional as F
from torch import Tensor, nn


class OwnLinear(nn.Linear):
    """Biases start at zero; weights by ``start``: ``xavier`` (times ``gain``), ``zero`` or ``identity``."""

    def __init__(self, inputs: int, outputs: int, start: str = "xavier", bias: bool = True, gain: float = 1.0) -> None:
        super().__init__(inputs, outputs, bias=bias)
        if start == "xavier":
            nn.init.xavier_uniform_(self.weight, gain=gain)
        elif start == "identity":
            nn.init.eye_(self.weight)
        else:
            nn.init.zeros_(self.weight)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class OwnConv2d(nn.Conv2d):
    """Initial values are PyTorch's, or zeros."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int | None = None, zero: bool = False
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=kernel // 2 if padding is None else padding)
        if zero:
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.weight.to(x.dtype), bias)


class OwnLayerNorm(nn.LayerNorm):
    """Computes in fp32 and returns its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class OwnGroupNorm(nn.GroupNorm):
    """Computes in fp32 and returns its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


class Float32Linear(nn.Linear):
    """Computes in fp32 and returns fp32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class Float32Pointwise(nn.Conv2d):
    """1x1 convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.conv2d(x.float(), self.weight.float(), bias)
