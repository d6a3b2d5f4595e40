"""What a training step costs, counted while it runs on the meta device, where it computes nothing.

The step is the family's own: the network of the stage, the helpers of its losses and a batch at full size, forward and
backward, with trained weights in the precision of the run. Nothing is declared and nothing is estimated from a config.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stagecoach.models import get_family
from stagecoach.models.family import Batch, Family, Progress
from stagecoach.models.trainable import freeze
from stagecoach.trainer.objective import weighted_total
from stagecoach.trainer.planning.kernel_stand_ins import KernelStandIns
from stagecoach.trainer.planning.op_counter import OpCounter
from stagecoach.trainer.planning.op_work import Amount
from stagecoach.trainer.planning.saved_bytes import KeptBytes, SavedBytes
from stagecoach.trainer.stage_plan import DTYPES, StagePlan

log = logging.getLogger(__name__)

Kind = Literal["trained", "grad_passthrough", "no_grad"]
LABEL_PARTS = 3
"""How many parts of a dotted name the rows of the table go by."""


@dataclass(frozen=True)
class ModuleRow:
    """FLOPs of the modules of one name (``*`` for numbers) and kind, of the whole micro-batch. ``kind``: ``trained``,
    ``grad_passthrough`` (frozen, but gradients flow through) or ``no_grad`` (no gradient)."""

    module: str
    kind: Kind
    forward: Amount
    backward: Amount


@dataclass(frozen=True)
class StepCosts:
    """Costs of one micro-batch of ``samples``."""

    samples: int
    rows: tuple[ModuleRow, ...]
    recomputed: Amount
    """What ``full`` recompute runs again; ``selective`` runs it again without the attention."""
    kept: KeptBytes

    def flops(self, policy: str = "none") -> float:
        """Return the FLOPs of forward and backward with what ``policy`` runs again."""
        again = {"none": 0.0, "selective": self.recomputed.linear, "full": self.recomputed.flops}[policy]
        return again + sum(row.forward.flops + row.backward.flops for row in self.rows)

    def traffic(self, policy: str = "none") -> float:
        """Return the bytes that operations without matrix products read and write, with what ``policy`` runs again."""
        again = 0.0 if policy == "none" else self.recomputed.traffic
        return again + sum(row.forward.traffic + row.backward.traffic for row in self.rows)


def step_costs(plan: StagePlan, samples: int) -> StepCosts:
    """Count the last step of a stage, when everything that opens later in the stage is open, on a micro-batch of
    ``samples``."""
    recipe, stage = plan.recipe, plan.stage
    weights = tuple(sorted(stage.loss_weights.items()))
    config = plan.config.model_dump_json()
    return _counted(recipe.family, config, plan.index, samples, recipe.precision, weights, stage.steps)


def sample_flops(plan: StagePlan) -> float:
    """FLOPs of a sample in training, or 0 with a warning where the step cannot be counted: a number for people is no
    reason to stop a cluster."""
    try:
        costs = step_costs(plan, plan.batching.micro)
    except Exception as error:
        log.warning("no MFU is logged: the step could not be counted (%s: %s)", type(error).__name__, error)
        return 0.0
    return costs.flops() / costs.samples


@lru_cache(maxsize=64)
def _counted(
    family_name: str,
    config: str,
    index: int,
    samples: int,
    precision: str,
    weights: tuple[tuple[str, float], ...],
    steps: int,
) -> StepCosts:
    family = get_family(family_name)
    typed = family.config_type.model_validate_json(config)
    network, helpers = meta_network(family, typed, index, DTYPES[precision])
    batch, progress = (
        family.example_batch(typed, index, samples, "meta", 0),
        Progress(steps - 1, steps, index, 0, helpers=helpers),
    )
    spec = family.stages(typed)[index - 1]

    def step() -> Tensor:
        return weighted_total(network(batch, progress)["losses"], spec, dict(weights), progress).mean()

    return count(step, network, family.recompute_units(network), batch, helpers)


def meta_network(family: Family, config: Any, index: int, dtype: torch.dtype) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Build the network of a stage and the helpers of its losses without values, frozen as the stage declares, trained
    weights in ``dtype`` as an engine holds them."""
    network = family.build(config, index, "meta", dtype)
    freeze(network, family.stages(config)[index - 1])
    helpers = family.helpers(config, index, "meta", dtype)
    for top in (network, *helpers.values()):
        _to_meta(top, dtype)
    return network, helpers


def count(
    step: Callable[[], Tensor],
    network: nn.Module,
    units: Iterable[nn.Module],
    batch: Batch,
    helpers: Mapping[str, nn.Module],
) -> StepCosts:
    """Run a forward and its backward on the meta device and return what they cost.

    Args:
        step: runs the forward and returns the loss, a scalar.
        network: whose modules the costs are booked to.
        units: modules of it that a policy may run again.
        batch: what ``step`` reads; it stays in memory regardless of what is recomputed.
        helpers: frozen modules outside of the network, by name.
    """
    network.train()
    modules = _Modules(network, helpers)
    resident = [
        *(t for top in (network, *helpers.values()) for t in (*top.parameters(), *top.buffers())),
        *(t for t in batch.values() if isinstance(t, Tensor)),
    ]
    saved = SavedBytes(resident, lambda: counter.done)
    counter = OpCounter(lambda: modules.running, saved.attended)
    with modules.tracked(), KernelStandIns(), counter, torch.enable_grad():
        with saved.watching(units):
            loss = step()
        loss.backward()
    return StepCosts(len(batch["uid"]), modules.rows(counter), saved.recomputed(), saved.total())


class _Modules:
    """Names of the modules of a network and its helpers, and which of them is running. Module 0 is the network."""

    def __init__(self, network: nn.Module, helpers: Mapping[str, nn.Module]) -> None:
        named = [
            *network.named_modules(),
            *(
                (f"helpers.{prefix}.{name}".rstrip("."), module)
                for prefix, top in helpers.items()
                for name, module in top.named_modules()
            ),
        ]
        self.names, self.modules = [name for name, _ in named], [module for _, module in named]
        self._running = [0]

    @property
    def running(self) -> int:
        return self._running[-1]

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Keep ``running`` up to date while the network runs inside."""
        with ExitStack() as stack:
            for number, module in enumerate(self.modules):
                stack.callback(module.register_forward_pre_hook(partial(self._enter, number)).remove)
                stack.callback(module.register_forward_hook(self._leave).remove)
            yield

    def rows(self, counter: OpCounter) -> tuple[ModuleRow, ...]:
        """Return a row for each label and kind, in the order in which they ran."""
        sums: dict[tuple[str, Kind], list[Amount]] = defaultdict(lambda: [Amount(), Amount()])
        for number in dict.fromkeys((*counter.forward, *counter.backward)):
            parts = counter.forward.get(number, Amount()), counter.backward.get(number, Amount())
            entry = sums[label(self.names[number]), self._kind(number, parts[1])]
            entry[0], entry[1] = entry[0] + parts[0], entry[1] + parts[1]
        return tuple(ModuleRow(name, kind, *parts) for (name, kind), parts in sums.items())

    def _kind(self, number: int, backward: Amount) -> Kind:
        if any(p.requires_grad for p in self.modules[number].parameters(recurse=False)):
            return "trained"
        return "grad_passthrough" if backward != Amount() else "no_grad"

    def _enter(self, number: int, module: nn.Module, args: Any) -> None:
        self._running.append(number)

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self._running.pop()


def label(name: str) -> str:
    """Return the row that a module's dotted ``name`` belongs to: its first parts, ``*`` for numbers."""
    parts = name.split(".")[:LABEL_PARTS]
    return ".".join("*" if part.isdigit() else part for part in parts) or "(network)"


def _to_meta(top: nn.Module, dtype: torch.dtype) -> None:
    """Put all parameters and buffers on the meta device, trained ones in ``dtype``."""
    for module in top.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                wanted = dtype if parameter.requires_grad else parameter.dtype
                module._parameters[name] = nn.Parameter(parameter.data.to("meta", wanted), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to("meta")
