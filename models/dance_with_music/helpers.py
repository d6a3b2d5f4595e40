"""The frozen models of losses, validation and previews: the VAE's decoder and ArcFace."""

from typing import Any

import torch
from torch import nn

from stagecoach.data.dance_with_music.schema import LATENT_CHANNELS
from stagecoach.models.common.decoder import check_decoder, make_decoder, vae_arguments
from stagecoach.models.common.materialise import needs
from stagecoach.models.dance_with_music.config import DanceConfig
from stagecoach.models.dance_with_music.identity.arcface import load_arcface, make_arcface, open_arcface

AT_ONCE = 4
"""Frames that are decoded together: at 512 x 512 each takes about 0.5 GB in 16 bits."""


def make_helpers(config: DanceConfig, device: torch.device | str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """``vae``, and ``arcface`` where ``weights.arcface`` is given or the identity loss needs it. Without a folder or a
    file, where ``allow_random_init`` says so, small ones of random weights. On the meta device nothing is read. Raises
    ``ValueError`` as ``check_helpers``."""
    paths, random, meta = config.weights, config.allow_random_init, torch.device(device).type == "meta"
    vae = make_decoder(paths.vae, "weights.vae", _vae_arguments(config), random, device, dtype, AT_ONCE)
    found: dict[str, nn.Module] = {"vae": vae}
    if paths.arcface is not None and not meta:
        found["arcface"] = load_arcface(paths.arcface, device)
    elif paths.arcface is not None or config.losses.id_kind == "arcface":
        if not meta:
            _needs_arcface(config)
        found["arcface"] = make_arcface(device, small=random and paths.arcface is None)
    return found


def check_helpers(config: DanceConfig) -> str:
    """One sentence about them, without reading all of their weights. Raises ``ValueError`` where one is missing or
    another model."""
    arcface = config.weights.arcface
    decoder = check_decoder(config.weights.vae, "weights.vae", config.allow_random_init, _vae_arguments(config))
    if arcface is not None:
        open_arcface(arcface)
        return f"{decoder}, arcface from {arcface}"
    if config.losses.id_kind == "arcface":
        _needs_arcface(config)
    return f"{decoder}, arcface not given"


def _vae_arguments(config: DanceConfig) -> dict[str, Any]:
    """Arguments of ``diffusers.AutoencoderKL``, small ones for random weights."""
    small = config.allow_random_init and config.weights.vae is None
    sizes = ((8,) * 4, 1, 4) if small else ((128, 256, 512, 512), 2, 32)
    return vae_arguments(LATENT_CHANNELS, *sizes, scaling_factor=0.18215)


def _needs_arcface(config: DanceConfig) -> None:
    needs(
        "weights.arcface",
        "a file with the weights of iresnet100, for losses.id_kind: arcface",
        config.allow_random_init,
    )
