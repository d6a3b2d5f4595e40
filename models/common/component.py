"""A network as a component of a pipeline of diffusers: saved and loaded in its layout, offloaded by its hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from pydantic import BaseModel

from stagecoach.models.common.attention import resolve_backend, set_backend
from stagecoach.models.common.materialise import SafetensorsFolder, put
from stagecoach.models.common.quantize import is_quantized


class NetworkComponent(ModelMixin, ConfigMixin):
    """A network of a family, whose ``forward`` is its ``predict``, so that hooks of offloading see each call.

    A subclass says of which ``config_type`` it is and how it is built. ``save_pretrained`` writes all of the network,
    base and adapter, each tensor in its dtype."""

    config_type: ClassVar[type[BaseModel]]
    build: ClassVar[Callable[..., Any]]
    """(config, stage, device, dtype) -> the network, its base on the meta device."""
    network: Any

    @register_to_config
    def __init__(self, network_config: dict[str, Any], stage: int, network_dtype: str = "float32") -> None:
        super().__init__()
        config = self.config_type.model_validate(network_config)
        self.network = type(self).build(config, stage, "cpu", getattr(torch, network_dtype))

    @classmethod
    def of(cls, network: Any) -> Self:
        """The ``network``, its base in place, as a component. What it trained takes the dtype of the base."""
        component: Any = cls.__new__(cls)
        torch.nn.Module.__init__(component)
        dtype = str(network.dtype).removeprefix("torch.")
        component.register_to_config(
            network_config=network.config.model_dump(mode="json"), stage=network.stage, network_dtype=dtype
        )
        component.network = network
        return component._frozen()

    def forward(self, *inputs: Any, **named: Any) -> dict[str, Any]:
        """The network's ``predict``."""
        return self.network.predict(*inputs, **named)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype | None = None, subfolder: str | None = None, **named: Any
    ) -> Self:
        """What ``save_pretrained`` wrote, in ``dtype`` (None: as it was). Raises ``ValueError`` naming what is missing
        or left over."""
        dtype = dtype or named.get("torch_dtype")  # the older name, which pipelines still pass on
        folder = Path(folder) / (subfolder or "")
        kind: Any = cls
        config = dict(kind.load_config(folder, local_files_only=True))
        if isinstance(dtype, torch.dtype):
            config["network_dtype"] = str(dtype).removeprefix("torch.")
        component = kind.from_config(config)
        shapes = {name: tuple(value.shape) for name, value in component.state_dict().items()}
        source = SafetensorsFolder(folder, shapes)
        stored = {}
        for name in shapes:
            value = source.read(name)
            stored[name] = value.dtype
            put(component, name, value, "cpu")
        if dtype is not None:
            return component._frozen()
        # What an earlier stage trained and this one does not may stand in fp32 where the rest does not.
        for name, parameter in component.named_parameters():
            parameter.data = parameter.data.to(stored[name])
        return component.requires_grad_(False).eval()

    def save_pretrained(self, *given: Any, **named: Any) -> None:
        """As diffusers. Raises ``ValueError`` for a base in 8 bits, which files of its layout do not hold."""
        if is_quantized(self.network):
            raise ValueError(
                f"a {type(self).__name__} in 8 bits is not saved, as its layout has no place for the scales; save it "
                "without quantize= and quantise where it is loaded"
            )
        parent: Any = super()
        parent.save_pretrained(*given, **named)

    def to(self, *where: Any, **named: Any) -> Self:
        """To a device. Raises ``ValueError`` for another dtype: parts of a base may stay in fp32."""
        device, dtype, *_ = torch._C._nn._parse_to(*where, **named)
        if dtype not in (None, self.network.dtype):
            raise ValueError(
                f"a {type(self).__name__} in {self.network.dtype} cannot be cast to {dtype}, as parts of it stay in "
                "fp32; give the dtype where it is loaded (dtype= of from_adapter or from_pretrained)"
            )
        if device is not None:  # each has kernels of its own
            set_backend(self.network, resolve_backend("auto", device, self.network.dtype))
        parent: Any = super()
        return parent.to(*where, **named)

    @property
    def dtype(self) -> torch.dtype:
        """That of activations and of the base."""
        return self.network.dtype

    def _frozen(self) -> Self:
        """What was trained in the dtype of the base, as an engine has it; nothing trains."""
        for parameter in self.network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(self.network.dtype)
        return self.requires_grad_(False).eval()
