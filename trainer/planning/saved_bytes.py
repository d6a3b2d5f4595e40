"""Bytes that autograd keeps from the forward for the backward, under each recompute policy.

A forward is watched once, with nothing recomputed. What a policy would keep follows: tensors saved outside of
recomputed units, the inputs of units and, under ``selective``, the outputs of attention inside them; and while a unit
is run again, what it saves besides. Each storage counts once and as a whole, however many views of it are saved.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from stagecoach.trainer.planning.op_work import Amount

Storages = dict[int, int]
"""Bytes by identity of a storage."""


@dataclass
class UnitCall:
    """One call of a recomputed unit: what it takes in, saves and attends, and the work until its last saved tensor.
    Recomputation stops there (``torch.utils.checkpoint``'s early stop)."""

    inputs: Storages
    begun: Amount
    saved: Storages = field(default_factory=dict)
    attended: Storages = field(default_factory=dict)
    again: Amount | None = None
    """None where it saved nothing: then it is not run again."""


@dataclass(frozen=True)
class KeptBytes:
    """Bytes of a micro-batch's activations when the backward begins, and what they are made of."""

    none: int
    selective: int
    full: int
    outside: int
    """Saved outside of recomputed units."""
    boundaries: int
    """Inputs of recomputed units that are not saved outside of them anyway."""
    attention: int
    """Outputs of attention inside units."""
    largest_unit: int
    """What the largest recomputed unit saves while it is run again under ``full``."""


class SavedBytes:
    """Watches a forward. ``resident``: tensors that stay in memory anyway, weights and the batch. ``done`` returns the
    work up to now."""

    def __init__(self, resident: Iterable[Tensor], done: Callable[[], Amount]) -> None:
        self._done = done
        # Storages are known by their address, which must not be given to another one meanwhile.
        self._alive: list[Any] = []
        self._resident = {self._key(tensor) for tensor in resident}
        self.outside: Storages = {}
        self.calls: list[UnitCall] = []
        self._call: UnitCall | None = None

    @contextmanager
    def watching(self, units: Iterable[nn.Module]) -> Iterator[None]:
        """Watch what runs inside; ``units`` are what may be recomputed, as ``apply_activation_checkpointing`` wraps
        them."""
        with ExitStack() as stack:
            for unit in units:
                own = unit.__dict__.get("forward")
                unit.forward = partial(self._run, unit.forward)
                stack.callback(_restore, unit, own)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor))
            yield

    def attended(self, outputs: Any) -> None:
        """Take note of what an attention kernel returned."""
        if self._call is not None:
            self._note(outputs, self._call.attended)

    def total(self) -> KeptBytes:
        """Return the bytes that each policy keeps."""
        calls = [call for call in self.calls if call.again is not None]
        everything = _union(self.outside, *(call.saved for call in calls))
        full = _union(self.outside, *(call.inputs for call in calls))
        selective = _union(full, *(call.attended for call in calls))
        largest = {
            kept: max((_bytes(call.saved, without) for call in calls), default=0)
            for kept, without in (("full", full), ("selective", selective))
        }
        return KeptBytes(
            none=_bytes(everything),
            selective=_bytes(selective) + largest["selective"],
            full=_bytes(full) + largest["full"],
            outside=_bytes(self.outside),
            boundaries=_bytes(full, self.outside),
            attention=_bytes(selective, full),
            largest_unit=largest["full"],
        )

    def recomputed(self) -> Amount:
        """Return the work that ``full`` does again; ``selective`` does it without the attention."""
        return sum((call.again for call in self.calls if call.again is not None), Amount())

    def _run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        outer, self._call = self._call, UnitCall({}, self._done())
        self.calls.append(self._call)
        self._note((args, kwargs), self._call.inputs)
        try:
            return forward(*args, **kwargs)
        finally:
            self._call = outer

    def _pack(self, tensor: Tensor) -> Tensor:
        call = self._call
        if call is not None:
            call.again = self._done() - call.begun
        self._note(tensor, self.outside if call is None else call.saved)
        # An output must not be kept by its own node. Leaves are never outputs.
        return tensor if tensor.is_leaf else tensor.detach()

    def _note(self, tensors: Any, into: Storages) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and (key := self._key(tensor)) not in self._resident:
                into[key] = tensor.untyped_storage().nbytes()

    def _key(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self._alive.append(storage)
        return storage._cdata


def _union(*parts: Storages) -> Storages:
    return {key: size for part in parts for key, size in part.items()}


def _bytes(storages: Storages, without: Storages | None = None) -> int:
    return sum(size for key, size in storages.items() if key not in (without or {}))


def _restore(unit: nn.Module, own: Any) -> None:
    """Give a unit the forward back that it had: its class's, or one of its own."""
    if own is None:
        del unit.__dict__["forward"]
    else:
        unit.forward = own
