"""Frozen encoders of pictures, from local folders in the Hugging Face layout: FLUX's VAE, CLIP's projected image
embedding, DINOv2's class token.

On a GPU they compute in bf16, on a CPU in fp32; results are fp32 on the CPU. One thread may use an encoder at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPVisionModelWithProjection, Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from stagecoach.data.encoding.encoders import EncoderError, load_config, load_model

SPATIAL_STRIDE = 8
PIXELS_AT_ONCE = 4 * 1024 * 1024
"""Pictures are encoded together while they have no more pixels: FLUX's VAE starts with 128 channels at full resolution,
in bf16 0.27 GB per megapixel for each of the few tensors that are held at once."""
CROPS_AT_ONCE = 64
DINO_SIZE = 224
"""Side of DINOv2's crops, which then have 1 + 16 x 16 tokens. Its weights name 518, the size they were last tuned at;
its position encodings are interpolated."""


class LatentEncoder:
    """FLUX's VAE: latent = (mode of the posterior - shift_factor) * scaling_factor, both from its configuration."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._vae = load_model(AutoencoderKL, path, device)
        config = self._vae.config
        if config.shift_factor is None or config.scaling_factor is None:
            raise EncoderError(
                f"{path}: shift_factor {config.shift_factor} and scaling_factor {config.scaling_factor} "
                f"found, expected both as in FLUX's VAE"
            )
        stride = 2 ** (len(config.block_out_channels) - 1)
        if stride != SPATIAL_STRIDE:
            raise EncoderError(f"{path}: a VAE of stride {stride} found, expected {SPATIAL_STRIDE} as FLUX's")
        self.channels: int = config.latent_channels
        self.shift, self.scale = float(config.shift_factor), float(config.scaling_factor)

    @torch.inference_mode()
    def encode(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        """uint8 [H, W, 3] each, of any multiples of 8 -> fp32 [C, H / 8, W / 8] each, in the same order. Neighbours of
        one size are encoded together."""
        out: list[Tensor] = []
        for group in _alike(images):
            batch = torch.from_numpy(np.stack(group)).to(self._vae.device).permute(0, 3, 1, 2)
            pixels = (batch.float() / 127.5 - 1).to(self._vae.dtype)
            latents = self._vae.encode(pixels).latent_dist.mode().float().cpu()
            out += self.normalise(latents).unbind(0)
        return out

    def normalise(self, latents: Tensor) -> Tensor:
        """What the VAE makes -> what FLUX's transformer takes."""
        return (latents - self.shift) * self.scale


class CropEncoder(ABC):
    """What CLIP's and DINOv2's encoders of crops have in common. ``size``: side of the crops they take, in pixels;
    ``dim``: length of the unit vectors they make. A crop fills the square at any aspect ratio, so that nothing
    of the object is cut off."""

    KIND: type
    MEAN: Sequence[float]
    STD: Sequence[float]

    def __init__(self, path: Path, device: torch.device) -> None:
        self._model = load_model(self.KIND, path, device)
        self.size, self.dim = self.sizes(path)

    @classmethod
    @abstractmethod
    def sizes(cls, path: Path) -> tuple[int, int]:
        """``size`` and ``dim``, from the configuration alone."""

    @torch.inference_mode()
    def encode(self, crops: Sequence[np.ndarray]) -> list[Tensor]:
        """uint8 [size, size, 3] each -> unit vectors fp32 [dim] each."""
        out: list[Tensor] = []
        for start in range(0, len(crops), CROPS_AT_ONCE):
            batch = torch.from_numpy(np.stack(crops[start : start + CROPS_AT_ONCE])).to(self._model.device)
            pixels = standardise(batch.permute(0, 3, 1, 2).float() / 255, self.MEAN, self.STD)
            out += F.normalize(self._vectors(pixels.to(self._model.dtype)).float().cpu(), dim=-1).unbind(0)
        return out

    @abstractmethod
    def _vectors(self, pixels: Tensor) -> Tensor:
        """[N, 3, size, size], standardised -> [N, dim] of any length."""


class ClipEncoder(CropEncoder):
    """CLIP's projected image embedding (512 numbers for ViT-B, 768 for ViT-L)."""

    KIND, MEAN, STD = CLIPVisionModelWithProjection, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    @classmethod
    def sizes(cls, path: Path) -> tuple[int, int]:
        config = load_config(cls.KIND, path)
        return config["image_size"], config["projection_dim"]

    def _vectors(self, pixels: Tensor) -> Tensor:
        return self._model(pixels).image_embeds


class DinoEncoder(CropEncoder):
    """DINOv2's class token behind the last norm (768 numbers for ViT-B/14, 1024 for ViT-L/14)."""

    KIND, MEAN, STD = Dinov2Model, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    @classmethod
    def sizes(cls, path: Path) -> tuple[int, int]:
        config = load_config(cls.KIND, path)
        return min(config["image_size"], DINO_SIZE), config["hidden_size"]

    def _vectors(self, pixels: Tensor) -> Tensor:
        return self._model(pixels).last_hidden_state[:, 0]


def standardise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """[B, 3, H, W] in 0..1 -> less the mean, by the deviation of each channel."""
    mean, std = (
        torch.tensor(values, device=pixels.device, dtype=pixels.dtype).view(1, -1, 1, 1) for values in (mean, std)
    )
    return (pixels - mean) / std


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
