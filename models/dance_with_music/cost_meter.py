"""What a forward costs, counted while it runs on the meta device, where nothing is computed.

FLOP = 2 multiply-adds of linear layers, convolutions and attention; norms and activations are not counted, as
PyTorch's FlopCounterMode does not count them. Bytes are those of the tensors that autograd keeps, weights aside, each
storage once. Attention is taken to be a fused kernel: it keeps q, k, v, its output and a number per query and head.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from stagecoach.models.common.attention import Attend
from stagecoach.models.family import ModuleCost

LINEAR = (nn.Linear, nn.Conv2d, nn.Conv3d)


class CostMeter:
    """Sums by ``label``, a function from a module's dotted name to the row that it belongs to. ``units`` are what is
    recomputed in the backward."""

    def __init__(self, network: nn.Module, label: Callable[[str], str], units: Iterable[nn.Module]) -> None:
        self.network, self.label, self.units = network, label, list(units)
        self.linear: dict[tuple[str, str], float] = defaultdict(float)
        self.attention: dict[tuple[str, bool], float] = defaultdict(float)
        self.kept: dict[str, float] = defaultdict(float)
        self.inputs: dict[str, float] = defaultdict(float)
        self.outputs: dict[str, float] = defaultdict(float)
        self._weights = {id(p) for p in network.parameters()}
        self.units_kept: list[float] = [0.0] * len(self.units)
        self._unit: int | None = None
        self._inside: list[tuple[str, nn.Module]] = []
        self._seen: set[int] = set()
        self._taken: set[int] = set()
        # Storages are known by their address, which must not be given to another one.
        self._alive: list[Tensor] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Everything that the network runs inside is counted."""
        with ExitStack() as stack:
            for name, module in self.network.named_modules():
                hooks = [
                    module.register_forward_pre_hook(partial(self._enter, name)),
                    module.register_forward_hook(self._leave),
                ]
                if isinstance(module, Attend):
                    module.forward = partial(self._attend, name)
                    stack.callback(module.__dict__.pop, "forward")
                for hook in hooks:
                    stack.callback(hook.remove)
            for number, unit in enumerate(self.units):
                stack.callback(unit.register_forward_pre_hook(partial(self._begin, number)).remove)
                stack.callback(unit.register_forward_hook(self._recomputed, with_kwargs=True).remove)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, lambda t: t))
            yield

    def rows(self) -> list[ModuleCost]:
        """One per label and kind, in the order in which they ran. The bytes of a label are in its first row through
        which gradients go."""
        labels: dict[str, None] = dict.fromkeys([name for name, _ in self.linear] + [n for n, _ in self.attention])
        rows = []
        for name in labels:
            kinds = [kind for kind in ("trained", "passed", "still") if (name, kind) in self.linear]
            live = next((kind for kind in kinds if kind != "still"), "passed")
            if self.attention[name, True] and live not in kinds:
                kinds.insert(0, live)
            if self.attention[name, False] and "still" not in kinds:
                kinds.append("still")
            for kind in kinds:
                bytes_ = (
                    {
                        "activation_bytes": self.kept[name],
                        "boundary_bytes": self.inputs[name],
                        "attention_bytes": self.outputs[name],
                        "unit_bytes": max(self.units_kept, default=0.0),
                    }
                    if kind == live
                    else {}
                )
                heads = self.attention[name, kind != "still"] if kind in (live, "still") else 0.0
                own = name if len(kinds) == 1 else f"{name}.{kind}"
                rows.append(ModuleCost(own, self.linear[name, kind], heads, kind, **bytes_))
        return rows

    def _begin(self, number: int, _module: nn.Module, _args: Any) -> None:
        self._unit = number

    def _enter(self, name: str, module: nn.Module, _args: Any) -> None:
        self._inside.append((name, module))

    def _leave(self, module: nn.Module, args: tuple, out: Any) -> None:
        name = self._inside.pop()[0]
        if isinstance(module, LINEAR):
            taps = module.weight.numel() / module.weight.shape[0]
            kind = "trained" if module.weight.requires_grad else "passed" if args[0].requires_grad else "still"
            self.linear[self.label(name), kind] += 2.0 * out.numel() * taps

    def _attend(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = _Fused.apply(q, k, v).flatten(2)
        label = self.label(name)
        self.attention[label, out.requires_grad] += 4.0 * q.numel() * k.shape[1]
        if out.requires_grad:
            self.outputs[label] += out.numel() * out.element_size()
        return out

    def _recomputed(self, unit: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
        """A recomputed unit keeps its inputs; what many read is kept once."""
        self._unit = None
        if not any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves(out)):
            return
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self._taken:
                self._taken.add(key)
                self._alive.append(tensor)
                self.inputs[self.label(self._where())] += tensor.untyped_storage().nbytes()

    def _keep(self, tensor: Tensor) -> Tensor:
        weight = getattr(self._inside[-1][1], "weight", None) if self._inside else None
        of_weight = weight is not None and sorted(tensor.shape) == sorted(weight.shape)  # itself, turned or cast
        key = tensor.untyped_storage()._cdata
        if id(tensor) not in self._weights and not of_weight and key not in self._seen:
            self._seen.add(key)
            self._alive.append(tensor)
            self.kept[self.label(self._where())] += tensor.untyped_storage().nbytes()
            if self._unit is not None:
                self.units_kept[self._unit] += tensor.untyped_storage().nbytes()
        return tensor

    def _where(self) -> str:
        return self._inside[-1][0] if self._inside else ""


class _Fused(torch.autograd.Function):
    """``[B, N, heads, d]``, ``[B, M, heads, d]`` twice: the shape and the memory of a fused attention kernel."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:3], device=q.device))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError("a counted forward has no backward; run the network outside of CostMeter")
