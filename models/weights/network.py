"""Trained weights put into a network."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stagecoach.models.common.attention import resolve_backend, set_backend
from stagecoach.models.common.quantize import Kind as Bits
from stagecoach.models.common.quantize import quantize as store
from stagecoach.models.trainable import freeze, maximal_trainable, parameter_shape, trained_before
from stagecoach.models.weights.opening import Weights, compare
from stagecoach.models.weights.stored import open_stored

Assign = Callable[[nn.Parameter, Tensor], Any]


@torch.no_grad()
def copy_in(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.copy_(value)


def load_tensors(
    files: Mapping[str, Path], network: nn.Module, expected: set[str], source: object, assign: Assign | None = copy_in
) -> None:
    """Copy tensors into ``network`` by ``assign``; None compares alone. ``files``: where each stands, by its name. The
    names must be ``expected`` exactly, with the network's shapes.

    Raises ``ValueError`` naming ``source`` and the tensors that are missing, left over or of another shape.
    """
    parameters = dict(network.named_parameters())
    with ExitStack() as stack:
        handles = {file: stack.enter_context(open_stored(file)) for file in dict.fromkeys(files.values())}
        found = {name: tuple(handles[file].get_slice(name).get_shape()) for name, file in files.items()}
        compare(source, found, {name: parameter_shape(parameters[name]) for name in expected})
        for name in sorted(files) if assign is not None else ():
            assign(parameters[name], handles[files[name]].get_tensor(name))


def load_network(
    weights: Weights,
    base: str | Path | Mapping[str, str | Path] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
    quantize: Bits | None = None,
) -> nn.Module:
    """The network of ``weights`` as validation sees it: base and trained modules in ``dtype`` on ``device``, frozen,
    without dropout.

    Args:
        base: folder of the base instead of that in the weights' config; for a family of several, paths by setting
            (``{"weights.motion": ...}``).
        attention: as ``attention`` of a recipe.
        quantize: ``int8`` or ``fp8`` for the base's linear layers (``models.common.quantize``); what was trained stays.

    Raises:
        ValueError: the base is another one than the weights were trained on, by its sha256, or it or the weights do
            not fit the network, by name.
    """
    config, family = weights.config_with(base), weights.family
    backend = resolve_backend(attention, torch.device(device), dtype)
    network = family.build(config, weights.stage, device, dtype)
    weights.check_base(family.load_base(network, config, device))
    specs = family.stages(config)
    spec = next(spec for spec in specs if spec.index == weights.stage)
    freeze(network, spec)
    if weights.kind != "base":
        load_tensors(weights.files, network, set(weights.files), weights.source)
    for name in maximal_trainable(network):
        network.get_submodule(name).to(dtype)
    set_backend(network, backend)
    network.requires_grad_(False).eval()
    if quantize is not None:
        store(network, quantize, trained_before(network, specs, weights.stage + 1))
    return network
