"""The frozen helpers of the losses and previews: FLUX's VAE decoder and DINOv2. They stand outside the network and
outside the engine, plain replicas on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from stagecoach.data.encoding.encoders import load_config, load_model
from stagecoach.data.encoding.image_encoders import DinoEncoder, standardise
from stagecoach.data.movie_post_production.schema import LATENT_STRIDE
from stagecoach.models.common.materialise import keyed_init
from stagecoach.models.movie_post_production.config import DinoConfig, VaeConfig

PATCH = 14
"""Pixels per token of DINOv2."""


class Decoder(nn.Module):
    """Latents as FLUX's transformer takes them -> pixels. ``shift`` and ``scale``: latent = (z - shift) scale."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        self.shift, self.scale = float(vae.config.shift_factor), float(vae.config.scaling_factor)
        self.channels: int = vae.config.latent_channels
        self.requires_grad_(False).eval()

    def forward(self, latent: Tensor) -> Tensor:
        """``[M, C, h, w]`` -> pixels fp32 ``[M, 3, 8h, 8w]``, about -1..1. Gradients flow to ``latent``."""
        z = latent.to(self.decoder.conv_in.weight.dtype) / self.scale + self.shift
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z).float()


class CropFeatures(nn.Module):
    """Crops -> DINOv2's class token, as ``data.encoding.image_encoders.DinoEncoder`` makes the cached
    references. ``size``: side of the crops it takes; ``dim``: length of its vectors."""

    def __init__(self, model: Dinov2Model, size: int) -> None:
        super().__init__()
        self.model, self.size, self.dim = model, size, model.config.hidden_size
        self.requires_grad_(False).eval()

    def forward(self, crops: Tensor) -> Tensor:
        """Pixels ``[M, 3, size, size]`` in -1..1 -> unit vectors fp32 ``[M, dim]``."""
        pixels = standardise((crops.float() + 1) / 2, DinoEncoder.MEAN, DinoEncoder.STD)
        states = self.model(pixels.to(self.model.dtype)).last_hidden_state[:, 0]
        return F.normalize(states.float(), dim=-1)


class Helpers:
    """The helpers of a network; no ``nn.Module``, so that no module tree takes them in. ``dino`` is None in stage 1."""

    def __init__(self, vae: Decoder, dino: CropFeatures | None) -> None:
        self.vae, self.dino = vae, dino

    def on(self, device: torch.device) -> Helpers:
        """Themselves, moved to ``device`` if they are elsewhere."""
        for module in (self.vae, self.dino):
            if module is not None and next(module.parameters()).device != device:
                module.to(device)
        return self


def make_decoder(
    config: VaeConfig, channels: int, device: torch.device | str, dtype: torch.dtype, random: bool
) -> Decoder:
    """The decoder in ``config.base``; with ``random`` and no base one of random weights for latents of ``channels``. On
    the meta device, where no folder is read, one of the widths in ``config``. Raises ``ValueError`` where there is
    neither, and for a VAE of other latents."""
    meta = torch.device(device).type == "meta"
    if config.base is None or meta:
        _needs("vae.base", "FLUX's VAE", random or meta)
        with keyed_init("vae", "meta" if meta else "cpu"):
            vae = AutoencoderKL(**vae_arguments(config, channels))
        return Decoder(vae).to(device, dtype)
    vae = load_model(AutoencoderKL, Path(config.base), torch.device("cpu"))
    stride = 2 ** (len(vae.config.block_out_channels) - 1)
    if vae.config.latent_channels != channels or stride != LATENT_STRIDE or vae.config.shift_factor is None:
        raise ValueError(
            f"{config.base}: a VAE of {vae.config.latent_channels} channels, stride {stride} and shift "
            f"{vae.config.shift_factor} found, expected {channels} channels, stride {LATENT_STRIDE} and a "
            f"shift, as the shards' latents have; give vae.base the folder that they were built with"
        )
    return Decoder(vae).to(device, dtype)


def make_dino(
    config: DinoConfig, dim: int, device: torch.device | str, dtype: torch.dtype, random: bool
) -> CropFeatures:
    """DINOv2 in ``config.base``; with ``random`` and no base one of random weights whose vectors have ``dim`` numbers.
    On the meta device, where no folder is read, one of the sizes in ``config``. Raises ``ValueError`` where there is
    neither, and for vectors of another length."""
    meta = torch.device(device).type == "meta"
    if config.base is None or meta:
        _needs("dino.base", "DINOv2", random or meta)
        with keyed_init("dino", "meta" if meta else "cpu"):
            model = Dinov2Model(dino_config(config, dim))
        return CropFeatures(model, config.size).to(device, dtype)
    size, found = DinoEncoder.sizes(Path(config.base))
    if found != dim:
        raise ValueError(
            f"{config.base}: DINOv2 vectors of {found} numbers found, expected {dim} as in the shards; "
            f"give dino.base the folder that they were built with"
        )
    return CropFeatures(load_model(Dinov2Model, Path(config.base), torch.device("cpu")), size).to(device, dtype)


def vae_arguments(config: VaeConfig, channels: int) -> dict[str, Any]:
    """Arguments of ``diffusers.AutoencoderKL``."""
    return {
        "block_out_channels": config.channels,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": config.layers,
        "norm_num_groups": config.groups,
        "latent_channels": channels,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": config.shift,
        "scaling_factor": config.scale,
    }


def dino_config(config: DinoConfig, dim: int) -> Dinov2Config:
    return Dinov2Config(
        hidden_size=dim,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        image_size=config.size,
        patch_size=PATCH,
    )


def check_helpers(vae: VaeConfig, dino: DinoConfig | None, random: bool) -> str:
    """One sentence about the helpers, from their configurations alone. Raises ``ValueError`` as the above would."""
    found = []
    for name, kind, config in (("vae.base", AutoencoderKL, vae), ("dino.base", Dinov2Model, dino)):
        if config is None:
            continue
        if config.base is None:
            _needs(name, {"vae.base": "FLUX's VAE"}.get(name, "DINOv2"), random)
            found.append(f"{name.split('.')[0]} drawn at random")
        else:
            load_config(kind, Path(config.base))
            found.append(f"{name.split('.')[0]} from {config.base}")
    return ", ".join(found)


def _needs(name: str, what: str, random: bool) -> None:
    if not random:
        raise ValueError(
            f"{name} is not set, expected the local folder of {what}; allow_random_init: true takes "
            f"random weights, for tests and benchmarks"
        )
