"""Weights of a frozen base in 8 bits, for sampling on smaller cards: each is multiplied out to the dtype of activations
where it is used (torchao, weight-only)."""

from collections.abc import Container
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from stagecoach.data.files import import_extra

Kind = Literal["int8", "fp8"]
KINDS = get_args(Kind)
PROBE = 32
"""Side of the layer on which a kind is tried; kernels want multiples of 16."""


def quantize(network: nn.Module, kind: Kind, trained: Container[str] = ()) -> int:
    """Store the frozen linear layers of ``network``'s repeated blocks in ``kind`` with one scale for each output, in
    place, and return how many they are.

    Args:
        trained: names of parameters that training has made, besides those that require grad: they stay as they are.

    Layers outside of the blocks (embeddings of time and text, the head) are few and errors there are seen most, so
    they stay too.

    Raises:
        MissingPackageError: torchao is not installed.
        ValueError: an unknown kind, no layer to quantise, or the device cannot compute it.
    """
    if kind not in KINDS:
        raise ValueError(f"quantize is {kind!r}, expected one of {', '.join(KINDS)}")
    layers = [name for name, module in network.named_modules() if _is_frozen(name, module, trained)]
    if not layers:
        raise ValueError(f"{type(network).__name__} has no frozen linear layer in a block, expected one to quantise")
    library = _library()
    config = library.Int8WeightOnlyConfig() if kind == "int8" else library.Float8WeightOnlyConfig()
    _probe(library, config, kind, network.get_submodule(layers[0]).weight)
    chosen = set(layers)
    library.quantize_(network, config, filter_fn=lambda module, name: name in chosen)
    return len(layers)


def is_quantized(network: nn.Module) -> bool:
    """Whether ``quantize`` has changed it."""
    return any(type(value.data) not in (Tensor, nn.Parameter) for value in network.parameters())


def weight_bytes(network: nn.Module) -> int:
    """Memory of all parameters: of a quantised one its numbers and scales."""
    return sum(part.numel() * part.element_size() for value in network.parameters() for part in _parts(value))


def _parts(value: Any) -> list[Tensor]:
    names = getattr(value, "tensor_data_names", None) if type(value) is not nn.Parameter else None
    return [getattr(value, name) for name in names] if names else [value]


def _is_frozen(name: str, module: nn.Module, trained: Container[str]) -> bool:
    in_block = any(part.isdigit() for part in name.split("."))
    # Quantised layers keep their class, so that a second call would find them again.
    plain = isinstance(module, nn.Linear) and type(module.weight) is nn.Parameter
    return in_block and plain and not module.weight.requires_grad and f"{name}.weight" not in trained


def _library() -> Any:
    return import_extra("torchao.quantization", "weights in 8 bits", "quantize")


@torch.no_grad()
def _probe(library: Any, config: Any, kind: str, like: Any) -> None:
    """Raise ``ValueError`` where a small layer cannot be quantised and run on the device of ``like``."""
    layer = nn.Linear(PROBE, PROBE, device=like.device, dtype=like.dtype).requires_grad_(False)
    try:
        library.quantize_(layer, config)
        layer(torch.ones(1, PROBE, device=like.device, dtype=like.dtype))
    except (RuntimeError, NotImplementedError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{kind} weights cannot be computed with on {like.device} in {like.dtype} ({reason}); "
            f"take {'int8' if kind == 'fp8' else 'no quantisation'}"
        ) from error
