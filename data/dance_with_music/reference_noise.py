"""Noise on the pixels of references before the VAE, as Stable Video Diffusion's noise augmentation has it (arXiv
2311.15127, appendix D; StableAnimator trains with 0.02)."""

import hashlib

import torch
from torch import Tensor


def noise_input(strength: float) -> str | None:
    """What a manifest says of the VAE's ``input``."""
    return f"references with noise of {strength:g} on their pixels" if strength else None


def reference_noise(key: str, number: int, height: int, width: int) -> Tensor:
    """Standard normal fp32 [3, H, W] for reference ``number`` of the sample ``key``, and of nothing else."""
    seed = int.from_bytes(hashlib.sha256(f"reference_noise/{key}/{number}".encode()).digest()[:8], "big") >> 1
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
