"""The table of what trains and what is frozen, and what may lack a gradient."""

import fnmatch
import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from stagecoach.models.family import StageSpec, Trainable
from stagecoach.models.trainable import matching_modules, trainable_names


@dataclass(frozen=True)
class FreezeRow:
    """One line of the freeze table: a module group, its parameters, and the factor on the stage's learning rate."""

    pattern: str
    modules: int
    parameters: int
    lr_scale: float | None
    """None for what is frozen."""
    start_fraction: float = 0.0
    """Fraction of the stage before which its learning rate is 0."""


def parameter_count(parameter: Any) -> int:
    """Elements of a parameter, also after ZeRO-3 has partitioned it."""
    return getattr(parameter, "ds_numel", None) or parameter.numel()


def freeze_table(network: nn.Module, spec: StageSpec) -> list[FreezeRow]:
    """Trainable patterns in the stage's order, then the frozen rest by top-level module."""
    trained = trainable_names(network, spec)
    rows = []
    for entry in spec.trainable:
        modules = matching_modules(network, entry.pattern)
        count = sum(parameter_count(p) for m in modules for p in network.get_submodule(m).parameters())
        rows.append(FreezeRow(entry.pattern, len(modules), count, entry.lr_scale, entry.start_fraction))
    frozen: dict[str, list[int]] = {}
    for name, parameters in _maximal_frozen(network, trained):
        # Layers of one kind are one row.
        group = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        frozen.setdefault(group, []).append(sum(parameter_count(p) for p in parameters))
    rows += [FreezeRow(group, len(counts), sum(counts), None) for group, counts in frozen.items()]
    return rows


def may_lack_gradient(spec: StageSpec, name: str, step: int) -> bool:
    """Whether ``spec`` declares that parameter ``name`` may have had no gradient up to ``step``."""
    return any(
        fnmatch.fnmatchcase(name, entry.pattern) and (entry.until_step is None or step <= entry.until_step)
        for entry in spec.allow_no_gradient
    )


def _maximal_frozen(module: nn.Module, trained: dict[str, Trainable], prefix: str = ""):
    """Name and parameters of the largest modules (or bare parameters) in which nothing trains."""
    for name, parameter in module.named_parameters(prefix=prefix, recurse=False):
        if name not in trained:
            yield name, [parameter]
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        parameters = dict(child.named_parameters(prefix=path))
        if parameters and not any(name in trained for name in parameters):
            yield path, list(parameters.values())
        elif parameters:
            yield from _maximal_frozen(child, trained, path)
