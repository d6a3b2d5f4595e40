"""Which parameters train: the patterns of a stage applied to a network, and the table that says so."""

import fnmatch
import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from stagecoach.models.family import StageSpec, Trainable


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


def parameter_shape(parameter: Any) -> tuple[int, ...]:
    """Shape of a parameter, also after ZeRO-3 has partitioned it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def matching_modules(network: nn.Module, pattern: str) -> list[str]:
    """Names of modules that ``pattern`` names; ``*`` stands for one part of a dotted name."""
    expression = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
    return [name for name, _ in network.named_modules() if name and expression.fullmatch(name)]


def trainable_names(network: nn.Module, spec: StageSpec) -> dict[str, Trainable]:
    """Parameter name -> the entry of ``spec`` that it trains by.

    Raises ``ValueError`` for a pattern that matches nothing and for a parameter that two patterns claim.
    """
    owners: dict[str, Trainable] = {}
    for entry in spec.trainable:
        modules = matching_modules(network, entry.pattern)
        if not modules:
            top = sorted({name.split(".")[0] for name, _ in network.named_modules() if name})
            raise ValueError(
                f"stage {spec.index} ({spec.name}): trainable pattern {entry.pattern!r} matches no module "
                f"of the network, whose top-level modules are {top}"
            )
        for module in modules:
            for name, _ in network.get_submodule(module).named_parameters(prefix=module):
                if name in owners:
                    raise ValueError(
                        f"stage {spec.index} ({spec.name}): parameter {name} is claimed by the patterns "
                        f"{owners[name].pattern!r} and {entry.pattern!r}, expected one"
                    )
                owners[name] = entry
    return owners


def freeze(network: nn.Module, spec: StageSpec) -> dict[str, Trainable]:
    """Set ``requires_grad`` of every parameter as the stage declares; return what ``trainable_names`` does."""
    trained = trainable_names(network, spec)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    return trained


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
