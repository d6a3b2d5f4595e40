"""Peak rates of accelerators, for model FLOPs utilisation, and what memory a process has taken."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the names of GPUs are completed in a shell, which cannot wait for torch
    import torch

PEAK_BF16 = {
    "H20": 148e12,
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "4090": 165e12,
}
"""Dense bf16 FLOP/s by a part of the device's name (vendor data sheets)."""
MEMORY_BANDWIDTH = {
    "H20": 4.0e12,
    "H200": 4.8e12,
    "H100": 3.35e12,
    "H800": 3.35e12,
    "A100": 2.04e12,
    "A800": 2.04e12,
    "B200": 8.0e12,
    "L40S": 0.864e12,
    "4090": 1.008e12,
}
"""Bytes per second of the device's memory (vendor data sheets; of A100 the module with 80 GB)."""


def peak_flops(name: str) -> float | None:
    """Dense bf16 peak of the device called ``name``, or None if unknown. The longest match wins (H200, not H20)."""
    found = [part for part in PEAK_BF16 if part in name]
    return PEAK_BF16[max(found, key=len)] if found else None


def device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak_memory_bytes(device: torch.device) -> int:
    """Most bytes allocated on an accelerator since the start; on a CPU, the process's largest resident set."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
