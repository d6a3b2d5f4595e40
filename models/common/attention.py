"""Attention kernels by name, through diffusers' dispatch, for the backbones and for our own modules alike."""

import importlib
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor, nn

BACKENDS = {
    "flash": (AttentionBackendName.FLASH, "flash_attn"),
    "flash_3": (AttentionBackendName._FLASH_3, "flash_attn_interface"),
    "xformers": (AttentionBackendName.XFORMERS, "xformers.ops"),
    "sdpa": (AttentionBackendName.NATIVE, None),
}
"""Name in a recipe -> diffusers' name and the package that it needs."""


class Attend(nn.Module):
    """softmax(q k^T / sqrt(d)) v without a mask; it holds the backend's name and no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.backend = AttentionBackendName.NATIVE

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[B, N, heads, d]``, ``[B, M, heads, d]`` twice -> ``[B, N, heads * d]``."""
        return dispatch_attention_fn(q, k, v, backend=self.backend).flatten(2)


def resolve_backend(
    name: str, device: torch.device | str | None = None, dtype: torch.dtype = torch.bfloat16
) -> AttentionBackendName:
    """The backend that ``name`` means for tensors of ``dtype`` on ``device`` (None: a GPU where there is one).

    ``auto`` is flash-attention 2 where it imports, on a GPU and in 16 bits, and PyTorch's own attention elsewhere.
    Raises ``ValueError`` where a named one is unknown or cannot run here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu, short = torch.device(device).type == "cuda", dtype in (torch.bfloat16, torch.float16)
    if name == "auto":
        if not on_gpu or not short:
            return AttentionBackendName.NATIVE
        # Not version 3, on Hopper either: diffusers registers no backward for its kernel.
        return BACKENDS["sdpa" if _import_error("flash") else "flash"][0]
    if name not in BACKENDS:
        raise ValueError(f"attention backend {name!r} is unknown, expected auto or one of {', '.join(BACKENDS)}")
    if name == "sdpa":
        return BACKENDS[name][0]
    if not on_gpu:
        raise ValueError(
            f"attention backend {name!r} needs a CUDA device, found {torch.device(device).type}; use auto or sdpa here"
        )
    if name.startswith("flash") and not short:
        raise ValueError(f"attention backend {name!r} needs bf16 or fp16, found {dtype}; use sdpa or another precision")
    if error := _import_error(name):
        raise ValueError(
            f"attention backend {name!r} needs the package {BACKENDS[name][1]}, which does not import "
            f"({error}); install it or use auto"
        )
    return BACKENDS[name][0]


def set_backend(network: nn.Module, backend: AttentionBackendName) -> None:
    """Let every attention inside ``network`` use ``backend``: diffusers' processors and our ``Attend``."""
    for module in network.modules():
        if isinstance(module, Attend):
            module.backend = backend
            continue
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            processor._attention_backend = backend


def _import_error(name: str) -> str:
    """Why the package of a backend cannot be imported, or an empty string."""
    package = BACKENDS[name][1]
    try:
        if package is not None:
            importlib.import_module(package)
    except (ImportError, OSError) as error:
        return str(error)
    return ""
