"""Stand-ins on the meta device for kernels that only GPUs have: they return shapes, and autograd keeps what it would.

PyTorch takes attention and RMSNorm apart where it has no fused kernel, which on the meta device is always: into a
matrix of scores, and into fp32 copies. Inside ``KernelStandIns`` both are one operation again.
"""

from typing import Any

import torch
from torch import Tensor, library
from torch.overrides import TorchFunctionMode


class KernelStandIns(TorchFunctionMode):
    """A context in which attention and RMSNorm of meta tensors are those of a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        if func in (torch.nn.functional.rms_norm, torch.rms_norm):
            return _normalise(*args, **kwargs)
        return func(*args, **kwargs)


@library.custom_op("stagecoach_attention::forward", mutates_args=())
def attention_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of ``[B, heads, N, d]`` over ``[B, heads, M, d]``: output, and log-sum-exp fp32 ``[B, heads, N]``. A
    mask neither saves nor costs anything here."""
    raise NotImplementedError("a stand-in has shapes only")


@attention_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    # A kernel writes its output as q lies in memory, so that heads are joined without a copy.
    out = torch.empty_like(q) if q.shape[-1] == v.shape[-1] else q.new_empty((*q.shape[:-1], v.shape[-1]))
    return out, q.new_empty(q.shape[:-1], dtype=torch.float32)


@library.custom_op("stagecoach_attention::backward", mutates_args=())
def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from what a flash kernel keeps."""
    raise NotImplementedError("a stand-in has shapes only")


@attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep_attention(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _attention_gradients(ctx: Any, grad: Tensor, _sums: Tensor) -> tuple[Tensor, ...]:
    return attention_backward(grad, *ctx.saved_tensors)


attention_forward.register_autograd(_attention_gradients, setup_context=_keep_attention)


@library.custom_op("stagecoach_rms_norm::forward", mutates_args=())
def rms_norm_forward(x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """RMSNorm over the last dimension of ``x``: output, and one fp32 factor per row."""
    raise NotImplementedError("a stand-in has shapes only")


@rms_norm_forward.register_fake
def _(x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


@library.custom_op("stagecoach_rms_norm::backward", mutates_args=())
def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor | None, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and the weight (of nothing where there is no weight)."""
    raise NotImplementedError("a stand-in has shapes only")


@rms_norm_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor | None, factors: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if weight is None else torch.empty_like(weight)


def _keep_norm(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _norm_gradients(ctx: Any, grad: Tensor, _factors: Tensor) -> tuple[Tensor, Tensor | None]:
    x, weight, factors = ctx.saved_tensors
    of_x, of_weight = rms_norm_backward(grad, x, weight, factors)
    return of_x, None if weight is None else of_weight


rms_norm_forward.register_autograd(_norm_gradients, setup_context=_keep_norm)


def _attend(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
    """``scaled_dot_product_attention``, by the stand-in for meta tensors."""
    if query.is_meta:
        return attention_forward(query, key, value)[0]
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, *rest, **named)


def _normalise(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """``rms_norm``, by the stand-in where CUDA has one kernel for it: over the last dimension, input and weight of one
    dtype."""
    if input.is_meta and len(normalized_shape) == 1 and (weight is None or weight.dtype == input.dtype):
        return rms_norm_forward(input, weight)[0]
    return torch.rms_norm(input, normalized_shape, weight, eps)
