"""The frozen models of losses, validation and previews: FLUX's VAE decoder and DINOv2."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from stagecoach.data.encoding.encoders import load_config, load_model
from stagecoach.data.encoding.image_encoders import DinoEncoder, standardise
from stagecoach.models.common.decoder import Decoder, check_decoder, make_decoder, vae_arguments
from stagecoach.models.common.materialise import keyed_init, needs
from stagecoach.models.movie_post_production.config import DinoConfig, MoviePostConfig, VaeConfig
from stagecoach.models.movie_post_production.stages import IDENTITY_STAGE

PATCH = 14
"""Pixels per token of DINOv2."""


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


def make_helpers(
    config: MoviePostConfig, stage: int, device: torch.device | str, dtype: torch.dtype
) -> dict[str, nn.Module]:
    """``vae``, FLUX's decoder (losses, validation and previews), and from stage 2 on ``dino``, DINOv2. Without a base,
    where ``allow_random_init`` says so, of random weights and the sizes in ``config``. On the meta device nothing is
    read."""
    random = config.allow_random_init
    found: dict[str, nn.Module] = {
        "vae": make_flux_decoder(config.vae, config.backbone.latent_channels, device, dtype, random)
    }
    if stage >= IDENTITY_STAGE:
        found["dino"] = make_dino(config.dino, config.instance.dino_dim, device, dtype, random)
    return found


def make_flux_decoder(
    config: VaeConfig, channels: int, device: torch.device | str, dtype: torch.dtype, random: bool
) -> Decoder:
    """Of latents of ``channels``; see ``common.decoder.make_decoder``."""
    return make_decoder(config.base, "vae.base", flux_vae_arguments(config, channels), random, device, dtype)


def make_dino(
    config: DinoConfig, dim: int, device: torch.device | str, dtype: torch.dtype, random: bool
) -> CropFeatures:
    """DINOv2 in ``config.base``; with ``random`` and no base one of random weights whose vectors have ``dim`` numbers.
    On the meta device no folder is read. Raises ``ValueError`` where there is neither, and for vectors of another
    length."""
    meta = torch.device(device).type == "meta"
    if config.base is None or meta:
        needs("dino.base", "the local folder of DINOv2", random or meta)
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


def flux_vae_arguments(config: VaeConfig, channels: int) -> dict[str, Any]:
    """Arguments of ``diffusers.AutoencoderKL``."""
    return vae_arguments(
        channels,
        config.channels,
        config.layers,
        config.groups,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=config.shift,
        scaling_factor=config.scale,
    )


def dino_config(config: DinoConfig, dim: int) -> Dinov2Config:
    """Of a DINOv2 whose vectors have ``dim`` numbers."""
    return Dinov2Config(
        hidden_size=dim,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        image_size=config.size,
        patch_size=PATCH,
    )


def check_helpers(config: MoviePostConfig) -> str:
    """One sentence about them, from their configurations alone. Raises ``ValueError`` as the above would."""
    vae, dino, random = config.vae, config.dino.base, config.allow_random_init
    decoder = check_decoder(vae.base, "vae.base", random, flux_vae_arguments(vae, config.backbone.latent_channels))
    if dino is None:
        needs("dino.base", "the local folder of DINOv2", random)
        return f"{decoder}, dino not given"
    load_config(Dinov2Model, Path(dino))
    return f"{decoder}, dino from {dino}"
