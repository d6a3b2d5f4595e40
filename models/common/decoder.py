"""The frozen decoder of a VAE, for losses, validation and previews."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from stagecoach.data.encoding.encoders import load_config, load_model
from stagecoach.data.encoding.latent_encoders import SPATIAL_STRIDE, vae_kind
from stagecoach.models.common.materialise import keyed_init, needs

WHAT = "the local folder of the VAE that the shards were built with"


class Decoder(nn.Module):
    """Latents as the denoiser takes them, (z - shift) scale, -> pixels. Stable Video Diffusion's sees each frame as a
    clip of one. ``vae``: an ``AutoencoderKL`` or ``AutoencoderKLTemporalDecoder``, which diffusers does not type;
    ``at_once``: how many latents are decoded together, None for all."""

    def __init__(self, vae: Any, at_once: int | None = None) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, getattr(vae, "post_quant_conv", None)
        self.scale, self.shift = float(vae.config.scaling_factor), getattr(vae.config, "shift_factor", None)
        self.temporal, self.at_once = isinstance(vae, AutoencoderKLTemporalDecoder), at_once
        self.requires_grad_(False).eval()

    def forward(self, latents: Tensor) -> Tensor:
        """``[M, C, h, w]`` -> pixels fp32 ``[M, 3, 8h, 8w]``, about -1..1. Gradients flow to ``latents``."""
        if self.at_once is None:
            return self._decode(latents)
        return torch.cat([self._decode(part) for part in latents.split(self.at_once)])

    def _decode(self, latents: Tensor) -> Tensor:
        z = latents.to(self.decoder.conv_in.weight.dtype) / self.scale
        if self.shift is not None:
            z = z + self.shift
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        if self.temporal:
            return self.decoder(z, z.new_zeros(z.shape[0], 1), num_frames=1).float()
        return self.decoder(z).float()


def vae_arguments(channels: int, widths: tuple[int, ...], layers: int, groups: int, **more: Any) -> dict[str, Any]:
    """Arguments of ``diffusers.AutoencoderKL``."""
    return {
        "latent_channels": channels,
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": layers,
        "norm_num_groups": groups,
        **more,
    }


def make_decoder(
    path: str | None,
    key: str,
    arguments: Mapping[str, Any],
    random: bool,
    device: torch.device | str,
    dtype: torch.dtype,
    at_once: int | None = None,
) -> Decoder:
    """The decoder of the folder ``path``, whose latents must be as ``arguments`` (of ``AutoencoderKL``) have them; with
    ``random`` and no path one of random weights. On the meta device no folder is read. Raises ``ValueError`` about the
    setting ``key`` where there is neither, and for a VAE of other latents."""
    meta = torch.device(device).type == "meta"
    if path is None or meta:
        needs(key, WHAT, random or meta)
        with keyed_init("vae", "meta" if meta else "cpu"):
            vae = AutoencoderKL(**arguments)
        return Decoder(vae, at_once).to(device, dtype)
    check_decoder(path, key, random, arguments)
    return Decoder(load_model(vae_kind(Path(path)), Path(path), torch.device("cpu")), at_once).to(device, dtype)


def check_decoder(path: str | None, key: str, random: bool, arguments: Mapping[str, Any]) -> str:
    """A few words on the decoder. Raises ``ValueError`` where ``make_decoder`` would, by the folder's configuration
    alone."""
    if path is None:
        needs(key, WHAT, random)
        return "vae not given"
    config = load_config(vae_kind(Path(path)), Path(path))
    channels, shift, widths = (config.get(key) for key in ("latent_channels", "shift_factor", "block_out_channels"))
    stride, shifted = 2 ** (len(widths or ()) - 1), arguments.get("shift_factor") is not None
    if (channels, stride, shift is not None or not shifted) != (arguments["latent_channels"], SPATIAL_STRIDE, True):
        raise ValueError(
            f"{path}: a VAE of {channels} channels and stride {stride} found, its shift {shift}, expected "
            f"{arguments['latent_channels']} channels and stride {SPATIAL_STRIDE}{' and a shift' if shifted else ''}, "
            f"as the shards' latents have; give {key} the folder that they were built with"
        )
    return f"vae from {path}"
