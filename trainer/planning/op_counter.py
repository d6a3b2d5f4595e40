"""FLOPs and memory traffic of the operations of a step, by the module that runs them, forward and backward."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stagecoach.trainer.planning.op_results import OpResults
from stagecoach.trainer.planning.op_work import Amount


class OpCounter(TorchDispatchMode):
    """Counts every operation inside. ``place`` names the module that is running, an index; an operation of the backward
    belongs to the module whose forward made its autograd node. ``attended`` is given the outputs of attention."""

    def __init__(self, place: Callable[[], int], attended: Callable[[Any], None]) -> None:
        super().__init__()
        self.place, self.attended = place, attended
        self.forward: dict[int, Amount] = defaultdict(Amount)
        self.backward: dict[int, Amount] = defaultdict(Amount)
        self.done = Amount()
        """All of the forward up to now."""
        self._nodes: dict[int, int] = {}
        self._sorted: list[int] | None = None
        self._results = OpResults()

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out, amount = self._results.run(op, args, kwargs or {})
        node = torch._C._current_autograd_node()
        if node is None:
            # The node of this operation, if it has one, is the newest; the first operation after its making is its own.
            self._nodes.setdefault(torch.autograd._get_sequence_nr() - 1, self.place())
        if amount is None:
            return out
        if node is None:
            self.done = self.done + amount
            self.forward[self.place()] += amount
            if amount.attention:
                self.attended(out)
        else:
            self.backward[self._place_of(node._sequence_nr())] += amount
        return out

    def _place_of(self, number: int) -> int:
        """Return the module that made the autograd node ``number``, or else the last node before it."""
        if number in self._nodes:
            return self._nodes[number]
        if self._sorted is None:
            self._sorted = sorted(self._nodes)
        return self._nodes[self._sorted[max(bisect_right(self._sorted, number) - 1, 0)]]
