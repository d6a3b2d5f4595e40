"""Results of operations on the meta device, remembered: blocks repeat, and working out a shape takes longer than making
a tensor of it."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from stagecoach.trainer.planning.op_work import FREE, Amount, work


class OpResults:
    """Runs operations of meta tensors; one that was seen with inputs of the same shapes, strides and dtypes is not run
    again, if its outputs are new tensors."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[Any, Amount | None]] = {}

    def run(self, op: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Amount | None]:
        """Return the operation's output and what it costs."""
        key = None if op.is_view or op._schema.is_mutable or op._overloadpacket in FREE else _key((op, args, kwargs))
        if key is not None and key in self._known:
            forms, amount = self._known[key]
            return _make(forms), amount
        out = op(*args, **kwargs)
        amount = work(op, args, kwargs, out)
        if key is not None and (forms := _forms(out)) is not None:
            self._known[key] = forms, amount
        return out, amount


def _key(value: Any) -> Hashable | None:
    """Return what stands for an argument, with all that is in it; None where it is or holds a tensor with values."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype) if value.is_meta else None
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, (tuple, list)):
        parts = tuple(map(_key, value))
        return None if None in parts else parts
    return type(value), value  # 1, 1.0 and True are equal


def _forms(out: Any) -> Any:
    """Return shape, strides and dtype of each output; None where one is no meta tensor."""
    if isinstance(out, Tensor):
        return (out.shape, out.stride(), out.dtype) if out.is_meta else None
    if not isinstance(out, tuple):
        return None
    forms = [() if part is None else _forms(part) for part in out]
    return None if None in forms else forms


def _make(forms: Any) -> Any:
    """Make tensors of what ``_forms`` returned."""
    if isinstance(forms, list):
        return tuple(None if form == () else _make(form) for form in forms)
    shape, strides, dtype = forms
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
