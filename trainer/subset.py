"""The trainable subset of a network, as the one module that DeepSpeed sees.

ZeRO then partitions, gathers and saves what trains and nothing else; frozen weights stay plain replicas with no
traffic, no optimizer state and no place in a checkpoint, in their own dtypes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stagecoach.models.trainable import maximal_trainable


class EngineModule(nn.Module):
    """What DeepSpeed wraps: a root whose forward runs the network, or (``run``) another function of the family that
    calls it, so that ZeRO's bookkeeping at the root's forward happens for validation and previews too."""

    network: nn.Module

    def forward(self, *args: Any, run: Callable[..., Any] | None = None) -> Any:
        return (run or self.network)(*args)


class WholeNetwork(EngineModule):
    """The network with all its parameters: where all of it trains, or frozen weights are sharded as well."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class TrainableSubset(EngineModule):
    """Registers the maximal sub-modules of ``network`` whose parameters all train, as references to the very modules
    inside it, and keeps the network itself out of its module tree.

    Raises ``ValueError`` if a parameter that requires grad sits on a module with frozen ones (it would silently never
    train), naming the parameter and the module.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # Kept out of the module tree: what is not registered is invisible to DeepSpeed.
        self.__dict__["network"] = network
        self._names = list(maximal_trainable(network))
        for name in self._names:
            # A registered name may hold no dot; "-" cannot occur in attribute names, so this can be undone.
            self.add_module(name.replace(".", "-"), network.get_submodule(name))
        mine = {id(p) for p in self.parameters()}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and id(parameter) not in mine:
                holder = name.rpartition(".")[0] or "the network itself"
                raise ValueError(
                    f"parameter {name} trains but {holder} holds frozen parameters too, so that no module "
                    "of the engine owns it; wrap the parameter in a module of its own"
                )

    def train(self, mode: bool = True) -> TrainableSubset:
        super().train(mode)
        self.network.train(mode)
        return self

    def to(self, *args: Any, **kwargs: Any) -> TrainableSubset:
        """Move and cast the trainable part; the frozen part moves too but keeps its dtypes."""
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        super().to(*args, **kwargs)
        if device is not None:
            mine = {id(p) for p in self.parameters()}
            for module in self.network.modules():
                for parameter in module.parameters(recurse=False):
                    if id(parameter) not in mine:
                        parameter.data = parameter.data.to(device)
                for name, buffer in module.named_buffers(recurse=False):
                    module._buffers[name] = buffer.to(device)
        return self


def engine_module(network: nn.Module, frozen: str) -> EngineModule:
    """The module for ``deepspeed.initialize``. ``frozen`` is the recipe's word, ``replicate`` or ``shard``."""
    if frozen == "shard" or all(p.requires_grad for p in network.parameters()):
        return WholeNetwork(network)
    return TrainableSubset(network)
