"""What the networks of all families are made from."""

from collections.abc import Callable

import torch
from pydantic import BaseModel
from torch import nn

from stagecoach.models.common.materialise import keyed_init


class StageNetwork(nn.Module):
    """The network of one stage. Own modules are made on ``device``; ``dtype`` is that of the frozen base and of
    activations."""

    def __init__(self, config: BaseModel, stage: int, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.stage, self.dtype, self._device = config, stage, dtype, device

    def own(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """A module of our own, whose initial values depend on its name only and so are those of every stage."""
        with keyed_init(name, self._device):
            return make()
