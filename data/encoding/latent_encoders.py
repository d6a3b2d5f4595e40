"""Frozen VAEs of videos and of pictures, from local folders in the Hugging Face layout, as diffusers' pipelines use
them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, AutoencoderKLWan
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor

from stagecoach.data.encoding.encoders import EncoderError, load_model, read_config

SPATIAL_STRIDE = 8
TEMPORAL_STRIDE = 4
VIDEO_PIXELS_AT_ONCE = 512 * 512
"""Clips are encoded together while a frame of all of them has no more pixels; one large clip fills a device alone."""
PIXELS_AT_ONCE = 4 * 1024 * 1024
"""Pictures are encoded together while they have no more pixels: FLUX's VAE starts with 128 channels at full resolution,
in bf16 0.27 GB per megapixel for each of the few tensors that are held at once."""
UNSHIFTED_CHANNELS = 4
"""Of Stable Diffusion's VAE and Stable Video Diffusion's, which have no shift."""
VAES = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderKLTemporalDecoder)}


def vae_kind(path: Path) -> type[AutoencoderKL | AutoencoderKLTemporalDecoder]:
    """The class of the VAE of pictures in a folder, by its ``config.json``. Raises ``EncoderError`` for another."""
    name = read_config(path).get("_class_name")
    if name not in VAES:
        raise EncoderError(f"{path / 'config.json'}: _class_name is {name!r}, expected {' or '.join(VAES)}")
    return VAES[name]


class VideoEncoder:
    """Wan's VAE. Latents are the mode of the posterior, less ``latents_mean``, divided by ``latents_std``."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._use(load_model(AutoencoderKLWan, path, device))
        config = self._vae.config
        strides = config.scale_factor_spatial, config.scale_factor_temporal
        if strides != (SPATIAL_STRIDE, TEMPORAL_STRIDE):
            raise EncoderError(
                f"{path}: a VAE with strides {strides} (space, time) found, expected "
                f"{(SPATIAL_STRIDE, TEMPORAL_STRIDE)} as Wan2.1's"
            )

    @classmethod
    def of(cls, vae: AutoencoderKLWan) -> Self:
        """An encoder of a VAE that is loaded, as pipelines hold it."""
        encoder = cls.__new__(cls)
        encoder._use(vae)
        return encoder

    def _use(self, vae: AutoencoderKLWan) -> None:
        self._vae = vae
        self._mean, self._std = wan_statistics(vae)

    def encode(self, clips: Sequence[np.ndarray]) -> list[Tensor]:
        """uint8 [F, H, W, 3] each, all of one size -> fp32 [16, f, h, w] each."""
        return self._latents([_scaled(clip) for clip in clips])

    def image_latents(self, clips: Sequence[np.ndarray]) -> list[Tensor]:
        """Condition of image-to-video for clips as in ``encode``: fp32 [4 + 16, f, h, w] each, 4 channels that are 1
        where frames are given (the first latent frame), and the latent of frame 0 followed by grey frames."""
        videos = [_scaled(clip) for clip in clips]
        for video in videos:
            video[:, 1:] = 0
        out = []
        for latent in self._latents(videos):
            given = torch.zeros(TEMPORAL_STRIDE, *latent.shape[1:])
            given[:, 0] = 1
            out.append(torch.cat([given, latent]))
        return out

    @torch.no_grad()
    def _latents(self, videos: list[Tensor]) -> list[Tensor]:
        height, width = videos[0].shape[-2:]
        together, device = max(VIDEO_PIXELS_AT_ONCE // (height * width), 1), get_module_execution_device(self._vae)
        out: list[Tensor] = []
        for start in range(0, len(videos), together):
            batch = torch.stack(videos[start : start + together]).to(device, self._vae.dtype)
            latents = self._vae.encode(batch).latent_dist.mode().float().cpu()
            out += ((latents - self._mean) / self._std).unbind(0)
        return out


def wan_statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """Mean and deviation of a Wan VAE's latents, fp32 [1, C, 1, 1, 1] each."""
    mean, std = (
        torch.tensor(numbers).view(1, -1, 1, 1, 1) for numbers in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


class LatentEncoder:
    """The VAE of FLUX, Stable Diffusion 3 (``shifted``), Stable Diffusion or Stable Video Diffusion, whose encoder sees
    each frame alone: latent = (mode of the posterior - ``shift``) * ``scale``, both from its configuration."""

    def __init__(self, path: Path, device: torch.device, shifted: bool = True) -> None:
        self._use(load_model(vae_kind(path), path, device), shifted, path)

    @classmethod
    def of(cls, vae: AutoencoderKL | AutoencoderKLTemporalDecoder, shifted: bool = True) -> Self:
        """An encoder of a VAE that is loaded, as pipelines hold it."""
        encoder = cls.__new__(cls)
        encoder._use(vae, shifted, "the pipeline's VAE")
        return encoder

    def _use(self, vae: AutoencoderKL | AutoencoderKLTemporalDecoder, shifted: bool, where: object) -> None:
        self._vae = vae
        config = vae.config
        channels, stride = config.latent_channels, 2 ** (len(config.block_out_channels) - 1)
        shift = getattr(config, "shift_factor", None)
        known = shift is not None if shifted else shift is None and channels == UNSHIFTED_CHANNELS
        if stride != SPATIAL_STRIDE or config.scaling_factor is None or not known:
            more = "a shift as FLUX's" if shifted else f"{UNSHIFTED_CHANNELS} channels and none as Stable Diffusion's"
            raise EncoderError(
                f"{where}: a VAE of {channels} channels, stride {stride}, scale {config.scaling_factor} and shift "
                f"{shift} found, expected stride {SPATIAL_STRIDE}, a scale and {more}"
            )
        self.shift, self.scale = float(shift or 0.0), float(config.scaling_factor)

    @torch.no_grad()
    def encode(self, images: Sequence[np.ndarray], noise: Sequence[Tensor] | Tensor | None = None) -> list[Tensor]:
        """uint8 [H, W, 3] each, of any multiples of 8 -> fp32 [C, H / 8, W / 8] each, in the same order. Neighbours of
        one size are encoded together. ``noise``: fp32 [3, H, W] each, added to the pixels in -1..1."""
        out: list[Tensor] = []
        for group in _alike(images):
            device = get_module_execution_device(self._vae)
            batch = torch.from_numpy(np.stack(group)).to(device).permute(0, 3, 1, 2)
            pixels = batch.float() / 127.5 - 1
            if noise is not None:
                pixels = pixels + torch.stack(list(noise[len(out) : len(out) + len(group)])).to(device)
            latents = self._vae.encode(pixels.to(self._vae.dtype)).latent_dist.mode().float().cpu()
            out += ((latents - self.shift) * self.scale).unbind(0)
        return out


def _scaled(clip: np.ndarray) -> Tensor:
    """uint8 [F, H, W, 3] -> fp32 [3, F, H, W] in -1..1."""
    return torch.from_numpy(clip).permute(3, 0, 1, 2).float() / 127.5 - 1


def _alike(images: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Runs of neighbours of one size, of no more pixels than may be encoded at once."""
    groups: list[list[np.ndarray]] = []
    for image in images:
        pixels = image.shape[0] * image.shape[1]
        if groups and groups[-1][0].shape == image.shape and (len(groups[-1]) + 1) * pixels <= PIXELS_AT_ONCE:
            groups[-1].append(image)
        else:
            groups.append([image])
    return groups
