"""Small constants on a device, copied there once: a copy in every step makes the host wait for the device."""

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=256)
def constant(values: tuple, device: torch.device) -> Tensor:
    """fp32 tensor of ``values`` (nested tuples of numbers) on ``device``; not to be written into."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)
