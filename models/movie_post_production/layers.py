"""Linear layers of our own beside a 16-bit backbone, and the two ways through a layer that carries LoRA."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

Path = Callable[[nn.Module], nn.Module]
"""From a layer to what is called in its stead."""


class OwnLinear(nn.Linear):
    """A linear layer that computes in the dtype of its input, whatever its weights are held in: adapters of earlier
    stages stay fp32. Xavier weights, or zeros, or the identity; biases start at zero."""

    def __init__(self, inputs: int, outputs: int, start: str = "xavier", bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias=bias)
        if start == "xavier":
            nn.init.xavier_uniform_(self.weight)
        elif start == "identity":
            nn.init.eye_(self.weight)
        else:
            nn.init.zeros_(self.weight)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class OwnLayerNorm(nn.LayerNorm):
    """The same of a layer norm, which computes in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def has_lora(layer: nn.Module) -> bool:
    return isinstance(layer, LoraLayer)


def plain(layer: nn.Module) -> nn.Module:
    """The frozen layer, without its LoRA."""
    return layer.base_layer if has_lora(layer) else layer


def adapted(layer: nn.Module) -> nn.Module:
    """The layer with its LoRA, where it has one."""
    return layer
