"""What one operation costs: FLOPs by PyTorch's formulas, and memory traffic.

FLOP = 2 multiply-adds of matrix products, convolutions and attention. Traffic is what all other operations read and
write: on a GPU each is a kernel of its own that waits for memory and not for arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from stagecoach.trainer.planning import kernel_stand_ins  # noqa: F401  (registers operations that are named below)

BACKWARD_OF_ATTENTION = 2.5
"""Matrix products of a flash backward, which computes the scores again, by those of its forward: 5 to 2."""


@dataclass
class Amount:
    """Work that operations have done: FLOPs of matrix products and convolutions, those of attention, bytes moved."""

    linear: float = 0.0
    attention: float = 0.0
    traffic: float = 0.0

    @property
    def flops(self) -> float:
        return self.linear + self.attention

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.linear + other.linear, self.attention + other.attention, self.traffic + other.traffic)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.linear - other.linear, self.attention - other.attention, self.traffic - other.traffic)


def work(op: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> Amount | None:
    """Return what one operation costs, None for one that costs nothing, as views and empty tensors do."""
    packet = op._overloadpacket
    if packet in _ATTENTION:
        return Amount(attention=_ATTENTION[packet](*args))
    if packet in flop_registry:
        return Amount(linear=float(flop_registry[packet](*args, **kwargs, out_val=out)))
    if op.is_view or packet in FREE:
        return None
    written = tree_leaves(out)
    read = written if packet in _PICKING else tree_leaves((args, kwargs))
    # Tensors on the CPU are small ones that the host works with.
    return Amount(traffic=float(sum(touched(t) for t in (*read, *written) if isinstance(t, Tensor) and t.is_meta)))


def touched(tensor: Tensor) -> int:
    """Return the bytes of the elements of ``tensor`` that lie apart in memory: an expanded dimension is read once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count


def _attended(q: Tensor, k: Tensor, v: Tensor) -> float:
    """FLOPs of scores and of their product with ``v``: q ``[B, heads, N, d]``, k ``[B, heads, M, d]``."""
    return 2.0 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _attended_in_segments(q: Tensor, starts: Tensor) -> float:
    """The same inside each of the segments of q ``[rows, heads, d]``, taken to be equally long: ``starts`` ``[G + 1]``
    has no values on the meta device."""
    return 4.0 * q.numel() * len(q) / (len(starts) - 1)


_ATTENTION: dict[Any, Callable[..., float]] = {
    torch.ops.stagecoach_attention.forward: lambda q, k, v: _attended(q, k, v),
    torch.ops.stagecoach_attention.backward: lambda grad, q, k, v, *kept: BACKWARD_OF_ATTENTION * _attended(q, k, v),
}
FREE = {
    torch.ops.aten.detach,
    torch.ops.aten.empty,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty_strided,
    torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
    torch.ops.aten._unsafe_view,
}
_PICKING = {torch.ops.aten.index, torch.ops.aten.index_select, torch.ops.aten.gather, torch.ops.aten.embedding}
"""Read as much as they write, from wherever they pick it."""


def _register_segments() -> None:
    """Count PyTorch's attention over packed segments, an operation that exists once its module is imported."""
    import torch.nn.attention.varlen

    _ATTENTION[torch.ops.torch_attn._varlen_attn] = lambda q, k, v, starts, *rest: _attended_in_segments(q, starts)
    _ATTENTION[torch.ops.torch_attn._varlen_attn_backward] = lambda grad, q, k, v, out, sums, starts, *rest: (
        BACKWARD_OF_ATTENTION * _attended_in_segments(q, starts)
    )


_register_segments()
