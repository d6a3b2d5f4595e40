"""Which parameters train: the patterns of a stage applied to a network."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from stagecoach.models.family import StageSpec, Trainable


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


def trained_before(network: nn.Module, specs: tuple[StageSpec, ...], stage: int) -> set[str]:
    """Names that the stages before ``stage`` train, which the adapter handed to it must hold, no more and no fewer."""
    names: set[str] = set()
    for spec in specs:
        if spec.index < stage:
            names.update(trainable_names(network, spec))
    return names


def maximal_trainable(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Names of the largest modules below ``module`` whose parameters all require grad."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        flags = [p.requires_grad for p in child.parameters()]
        if flags and all(flags):
            yield path
        elif any(flags):
            yield from maximal_trainable(child, path)
