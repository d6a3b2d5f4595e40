"""Frozen encoders of single pictures: the VAEs of Stable Diffusion and of Stable Video Diffusion, and CLIP's projected
embedding, from local folders in the Hugging Face layout."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stagecoach.data.encoding.encoders import EncoderError, encoder_entry, encoder_folder, load_model

LATENT_CHANNELS = 4
LATENT_STRIDE = 8
PIXELS_AT_ONCE = 16 * 512 * 512
IMAGES_AT_ONCE = 64

VAES = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderKLTemporalDecoder)}
ClipResize = Literal["crop", "squash"]
"""How a picture becomes CLIP's square: the middle of it (CLIP's own way, CHAMP's) or all of it, squashed and smoothed
(Stable Video Diffusion's pipeline, StableAnimator's)."""


def vae_kind(path: Path) -> type:
    """The class of the VAE in a folder, by its ``config.json``. Raises ``EncoderError`` for another."""
    name = _config(path).get("_class_name")
    if name not in VAES:
        raise EncoderError(
            f"{path}: a {name} found, expected one of {sorted(VAES)} (the VAE of Stable Diffusion or of "
            f"Stable Video Diffusion)"
        )
    return VAES[name]


def clip_dim(path: Path) -> int:
    """Size of a CLIP vision model's embedding, by its ``config.json``. Raises ``EncoderError``."""
    dim = _config(path).get("projection_dim")
    if not isinstance(dim, int):
        raise EncoderError(f"{path / 'config.json'}: projection_dim is {dim!r}, expected the size of CLIP's embedding")
    return dim


class PictureVae:
    """Stable Diffusion's VAE, or Stable Video Diffusion's: its encoder takes each frame alone too."""

    def __init__(self, path: Path, device: torch.device) -> None:
        kind = vae_kind(path)
        self.entry = encoder_entry(kind, path, device)
        self._vae = load_model(kind, path, device)
        config = self._vae.config
        self.scaling_factor: float = config.scaling_factor
        stride = 2 ** (len(config.block_out_channels) - 1)
        shift = getattr(config, "shift_factor", None)
        if (config.latent_channels, stride, shift) != (LATENT_CHANNELS, LATENT_STRIDE, None):
            raise EncoderError(
                f"{path}: a VAE of {config.latent_channels} channels, stride {stride} and shift {shift} "
                f"found, expected {LATENT_CHANNELS}, {LATENT_STRIDE} and none as Stable Diffusion's"
            )

    @torch.inference_mode()
    def encode(self, pictures: np.ndarray) -> Tensor:
        """uint8 [N, H, W, 3] -> fp32 [N, 4, H / 8, W / 8]: the posterior's mean times ``scaling_factor``."""
        height, width = pictures.shape[1:3]
        together = max(PIXELS_AT_ONCE // (height * width), 1)
        out = []
        for start in range(0, len(pictures), together):
            pixels = torch.from_numpy(pictures[start : start + together]).to(self._vae.device)
            pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
            out.append(self._vae.encode(pixels.to(self._vae.dtype)).latent_dist.mode().float().cpu())
        return torch.cat(out) * self.scaling_factor


class PictureEmbedder:
    """CLIP's vision model with its projection."""

    def __init__(self, path: Path, device: torch.device, resize: ClipResize) -> None:
        kind = CLIPVisionModelWithProjection
        self.entry = encoder_entry(kind, path, device)
        self._model = load_model(kind, path, device)
        self.dim: int = self._model.config.projection_dim
        self._resize = resize
        folders = [path, path.parent / "image_processor", path.parent / "feature_extractor"]
        found = next((f for f in folders if (f / "preprocessor_config.json").is_file()), None)
        if found is None:
            raise EncoderError(
                f"{path}: no preprocessor_config.json found in it or in {folders[1]} or {folders[2]}, "
                f"expected the one of the image encoder"
            )
        self._processor = CLIPImageProcessorPil.from_pretrained(found, local_files_only=True)

    @torch.inference_mode()
    def encode(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """uint8 [H, W, 3] each, of any size -> fp32 [N, dim]."""
        out = []
        for start in range(0, len(pictures), IMAGES_AT_ONCE):
            pixels = self._pixels(pictures[start : start + IMAGES_AT_ONCE])
            out.append(self._model(pixels.to(self._model.device, self._model.dtype)).image_embeds.float().cpu())
        return torch.cat(out)

    def _pixels(self, pictures: Sequence[np.ndarray]) -> Tensor:
        if self._resize == "crop":
            return self._processor(images=[Image.fromarray(p) for p in pictures], return_tensors="pt").pixel_values
        from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

        size = self._model.config.image_size
        scaled = [torch.from_numpy(p).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in pictures]
        squares = [((_resize_with_antialiasing(p, (size, size)) + 1) / 2)[0].numpy() for p in scaled]
        return self._processor(
            images=squares,
            do_normalize=True,
            do_center_crop=False,
            do_resize=False,
            do_rescale=False,
            input_data_format="channels_first",
            return_tensors="pt",
        ).pixel_values


def _config(path: Path) -> dict:
    try:
        config = json.loads((encoder_folder(path) / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"{path / 'config.json'}: not readable ({error}), expected an encoder in the Hugging Face layout"
        ) from error
    return config if isinstance(config, dict) else {}
