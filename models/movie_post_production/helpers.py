"""The frozen models of losses, validation and previews: FLUX's VAE decoder and DINOv2."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from stagecoach.data.encoding.encoders import load_model
from stagecoach.data.encoding.image_encoders import DinoEncoder, standardise
from stagecoach.models.common.decoder import check_decoder, make_decoder, vae_arguments
from stagecoach.models.common.materialise import keyed_init, needs
from stagecoach.models.movie_post_production.config import MoviePostConfig
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
    read. Raises ``ValueError`` as ``check_helpers``."""
    vae = make_decoder(config.vae.base, "vae.base", vae_settings(config), config.allow_random_init, device, dtype)
    return {"vae": vae} if stage < IDENTITY_STAGE else {"vae": vae, "dino": make_dino(config, device, dtype)}


def make_dino(config: MoviePostConfig, device: torch.device | str, dtype: torch.dtype) -> CropFeatures:
    """DINOv2, as ``make_helpers`` says."""
    own, meta = config.dino, torch.device(device).type == "meta"
    if own.base is not None and not meta:
        check_dino(config)
        model = load_model(Dinov2Model, Path(own.base), torch.device("cpu"))
        return CropFeatures(model, DinoEncoder.sizes(Path(own.base))[0]).to(device, dtype)
    needs("dino.base", "the local folder of DINOv2", config.allow_random_init or meta)
    settings = Dinov2Config(
        hidden_size=config.instance.dino_dim,
        num_hidden_layers=own.layers,
        num_attention_heads=own.heads,
        mlp_ratio=own.mlp_ratio,
        image_size=own.size,
        patch_size=PATCH,
    )
    with keyed_init("dino", "meta" if meta else "cpu"):
        return CropFeatures(Dinov2Model(settings), own.size).to(device, dtype)


def vae_settings(config: MoviePostConfig) -> dict[str, Any]:
    """Arguments of ``diffusers.AutoencoderKL``."""
    own = config.vae
    more = {
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": own.shift,
        "scaling_factor": own.scale,
    }
    return vae_arguments(config.backbone.latent_channels, own.channels, own.layers, own.groups, **more)


def check_helpers(config: MoviePostConfig) -> str:
    """One sentence about them, from their configurations alone. Raises ``ValueError`` for one that is missing, and for
    latents or vectors of other sizes than the shards'."""
    vae = check_decoder(config.vae.base, "vae.base", config.allow_random_init, vae_settings(config))
    return f"{vae}, {check_dino(config)}"


def check_dino(config: MoviePostConfig) -> str:
    base, dim = config.dino.base, config.instance.dino_dim
    if base is None:
        needs("dino.base", "the local folder of DINOv2", config.allow_random_init)
        return "dino not given"
    _, found = DinoEncoder.sizes(Path(base))
    if found != dim:
        raise ValueError(
            f"{base}: DINOv2 vectors of {found} numbers found, expected {dim} as in the shards; give dino.base the "
            "folder that they were built with"
        )
    return f"dino from {base}"
