"""The frozen helpers of the losses and previews: the VAE's decoder and ArcFace. They stand outside the network and
outside the engine, plain replicas on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from stagecoach.data.dance_with_music.schema import LATENT_CHANNELS, LATENT_STRIDE
from stagecoach.data.encoding.encoders import load_config, load_model
from stagecoach.models.common.materialise import CONFIG_FILE, keyed_init, needs, read_json
from stagecoach.models.dance_with_music.config import DanceConfig
from stagecoach.models.dance_with_music.identity.arcface import (
    TINY_DEPTHS,
    TINY_WIDTHS,
    ArcFace,
    load_arcface,
    open_arcface,
    random_arcface,
)

KINDS = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderKLTemporalDecoder)}
AT_ONCE = 4
"""Frames that are decoded together: at 512 x 512 each takes about 0.5 GB in 16 bits."""
RANDOM_SCALE = 0.18215


class Decoder(nn.Module):
    """Cached latents -> pixels, by the decoder of Stable Diffusion's VAE or of Stable Video Diffusion's, which sees
    each frame as a clip of one."""

    def __init__(self, vae: AutoencoderKL | AutoencoderKLTemporalDecoder) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, getattr(vae, "post_quant_conv", None)
        self.scale = float(vae.config.scaling_factor)
        self.temporal = isinstance(vae, AutoencoderKLTemporalDecoder)
        self.requires_grad_(False).eval()

    def forward(self, latents: Tensor) -> Tensor:
        """Scaled ``[M, 4, h, w]`` -> pixels fp32 ``[M, 3, 8h, 8w]``, about -1..1. Gradients flow to ``latents``."""
        return torch.cat([self._decode(part) for part in latents.split(AT_ONCE)])

    def _decode(self, latents: Tensor) -> Tensor:
        z = latents.to(self.decoder.conv_in.weight.dtype) / self.scale
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        if self.temporal:
            return self.decoder(z, torch.zeros(len(z), 1, dtype=z.dtype, device=z.device), num_frames=1).float()
        return self.decoder(z).float()


class Helpers:
    """The helpers of a network, ``Helpers(**make_helpers(...))``; no ``nn.Module``, so that no module tree takes them
    in. ``arcface`` is None where none is given."""

    def __init__(self, vae: Decoder, arcface: ArcFace | None = None) -> None:
        self.vae, self.arcface = vae, arcface

    def on(self, device: torch.device) -> Helpers:
        """Themselves, moved to ``device`` if they are elsewhere."""
        for module in (self.vae, self.arcface):
            if module is not None and next(module.parameters()).device != device:
                module.to(device)
        return self


def make_helpers(config: DanceConfig, device: torch.device | str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """``vae``, and ``arcface`` where ``weights.arcface`` is given or the identity loss needs it. On the meta device no
    file is read. Raises ``ValueError`` as ``check_helpers``."""
    if torch.device(device).type == "meta":
        return _meta_helpers(config, dtype)
    found: dict[str, nn.Module] = {"vae": make_decoder(config, device, dtype)}
    if config.weights.arcface is not None:
        found["arcface"] = load_arcface(config.weights.arcface, device)
    elif config.losses.id_kind == "arcface":
        _needs_arcface(config)
        found["arcface"] = random_arcface(device)
    return found


def make_decoder(config: DanceConfig, device: torch.device | str, dtype: torch.dtype) -> Decoder:
    """The decoder in ``weights.vae``; with ``allow_random_init`` and no such folder a small one of random weights."""
    path = config.weights.vae
    if path is None:
        _needs_vae(config)
        with keyed_init("vae"):
            vae = AutoencoderKL(**_vae_arguments(small=True))
        return Decoder(vae).to(device, dtype)
    vae = load_model(_kind(path), Path(path), torch.device("cpu"))
    stride = 2 ** (len(vae.config.block_out_channels) - 1)
    if vae.config.latent_channels != LATENT_CHANNELS or stride != LATENT_STRIDE:
        raise ValueError(
            f"{path}: a VAE of {vae.config.latent_channels} channels and stride {stride} found, expected "
            f"{LATENT_CHANNELS} channels and stride {LATENT_STRIDE}, as the shards' latents have; give "
            "weights.vae the folder that they were built with"
        )
    return Decoder(vae).to(device, dtype)


def _meta_helpers(config: DanceConfig, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The helpers without values, of their published sizes; of the small random ones' where the config allows these and
    names no others."""
    with torch.device("meta"):
        small = config.weights.vae is None and config.allow_random_init
        found: dict[str, nn.Module] = {"vae": Decoder(AutoencoderKL(**_vae_arguments(small))).to(dtype)}
        if config.weights.arcface is not None or config.losses.id_kind == "arcface":
            small = config.weights.arcface is None and config.allow_random_init
            found["arcface"] = ArcFace(TINY_WIDTHS, TINY_DEPTHS) if small else ArcFace()
    return found


def _vae_arguments(small: bool) -> dict[str, Any]:
    """Arguments of ``AutoencoderKL``: Stable Diffusion's, or of a small one."""
    widths = (
        {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4}
        if small
        else {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
    )
    return {
        **widths,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": LATENT_CHANNELS,
        "scaling_factor": RANDOM_SCALE,
    }


def check_helpers(config: DanceConfig) -> str:
    """One sentence about the helpers, without reading all of their weights. Raises ``ValueError`` where one is missing
    or another model."""
    if config.weights.vae is None:
        _needs_vae(config)
    else:
        load_config(_kind(config.weights.vae), Path(config.weights.vae))
    if config.weights.arcface is not None:
        open_arcface(config.weights.arcface)
    elif config.losses.id_kind == "arcface":
        _needs_arcface(config)
    wanted = {"vae": config.weights.vae, "arcface": config.weights.arcface}
    return ", ".join(f"{name} {f'from {path}' if path else 'not given'}" for name, path in wanted.items())


def _kind(path: str) -> type[AutoencoderKL | AutoencoderKLTemporalDecoder]:
    file = Path(path) / CONFIG_FILE
    name = read_json(file).get("_class_name")
    if name not in KINDS:
        raise ValueError(f"{file}: _class_name is {name!r}, expected {' or '.join(KINDS)}")
    return KINDS[name]


def _needs_vae(config: DanceConfig) -> None:
    needs("weights.vae", "the local folder of the VAE that the shards were built with", config.allow_random_init)


def _needs_arcface(config: DanceConfig) -> None:
    needs(
        "weights.arcface",
        "a file with the weights of iresnet100, for losses.id_kind: arcface",
        config.allow_random_init,
    )
