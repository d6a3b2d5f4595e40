"""Frozen encoders of what pictures show, from local folders in the Hugging Face layout: CLIP's states and projected
embedding, DINOv2's class token."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import get_module_execution_device
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection, Dinov2Model, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stagecoach.data.encoding.encoders import EncoderError, load_config, load_model

AT_ONCE = 64
"""Pictures that are encoded together."""
DINO_SIZE = 224
"""Side of DINOv2's crops, which then have 1 + 16 x 16 tokens. Its weights name 518, the size they were last tuned at;
its position encodings are interpolated."""
ClipResize = Literal["crop", "squash"]
"""How a picture becomes CLIP's square: the middle of it (CLIP's own way, CHAMP's) or all of it, squashed and smoothed
(Stable Video Diffusion's pipeline, StableAnimator's)."""


def load_processor(path: Path) -> CLIPImageProcessorPil:
    """The processor of the image encoder ``path``, in its folder or in one of the usual neighbouring ones. Raises
    ``EncoderError``."""
    folders = [path, path.parent / "image_processor", path.parent / "feature_extractor"]
    found = next((f for f in folders if (f / "preprocessor_config.json").is_file()), None)
    if found is None:
        raise EncoderError(
            f"{path}: no preprocessor_config.json found in it or in {folders[1]} or {folders[2]}, expected the one "
            "of the image encoder"
        )
    return CLIPImageProcessorPil.from_pretrained(found, local_files_only=True)


class ImageEncoder:
    """CLIP's vision model; the last hidden states but one, as Wan2.1's image-to-video models take them: [257, dim] of a
    picture. All of the picture becomes CLIP's square, bicubic and not smoothed, as in Wan2.1's own code; diffusers'
    pipeline cuts the square out of its middle. The processor gives mean and deviation of the colours."""

    KIND: type = CLIPVisionModel
    INPUT = "the whole picture, squashed"
    """What a manifest says that it was given; earlier versions, whose shards say nothing, cut the middle out."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._model, self._processor = load_model(self.KIND, path, device), load_processor(path)

    @classmethod
    def of(cls, model: PreTrainedModel, processor: CLIPImageProcessorPil) -> Self:
        """An encoder of a model and a processor that are loaded, as pipelines hold them."""
        encoder = cls.__new__(cls)
        encoder._model, encoder._processor = model, processor
        return encoder

    @torch.no_grad()
    def encode(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """uint8 [H, W, 3] each, of any size -> fp32 [N, ...]."""
        out = []
        for start in range(0, len(pictures), AT_ONCE):
            pixels = self._pixels(pictures[start : start + AT_ONCE])
            device = get_module_execution_device(self._model)
            out.append(self._read(pixels.to(device, self._model.dtype)).float().cpu())
        return torch.cat(out)

    def _pixels(self, pictures: Sequence[np.ndarray]) -> Tensor:
        size = self._model.config.image_size
        colours = [torch.from_numpy(np.array(p)).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in pictures]
        squares = torch.cat([F.interpolate(picture, (size, size), mode="bicubic") for picture in colours])
        mean, deviation = (
            torch.tensor(values).view(-1, 1, 1) for values in (self._processor.image_mean, self._processor.image_std)
        )
        return (squares / 2 + 0.5 - mean) / deviation

    def _read(self, pixels: Tensor) -> Tensor:
        return self._model(pixels, output_hidden_states=True).hidden_states[-2]


class PictureEmbedder(ImageEncoder):
    """CLIP's projected embedding, [dim] of a picture."""

    KIND = CLIPVisionModelWithProjection

    def __init__(self, path: Path, device: torch.device, resize: ClipResize) -> None:
        super().__init__(path, device)
        self._resize = resize

    @classmethod
    def of(cls, model: PreTrainedModel, processor: CLIPImageProcessorPil, resize: ClipResize = "crop") -> Self:
        encoder = super().of(model, processor)
        encoder._resize = resize
        return encoder

    def _pixels(self, pictures: Sequence[np.ndarray]) -> Tensor:
        if self._resize == "crop":
            return self._processor(images=[Image.fromarray(p) for p in pictures], return_tensors="pt").pixel_values
        from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

        size = self._model.config.image_size
        scaled = [torch.from_numpy(p).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in pictures]
        squares = [((_resize_with_antialiasing(p, (size, size)) + 1) / 2)[0].numpy() for p in scaled]
        done = dict.fromkeys(("do_center_crop", "do_resize", "do_rescale"), False)
        return self._processor(
            images=squares, do_normalize=True, **done, input_data_format="channels_first", return_tensors="pt"
        ).pixel_values

    def _read(self, pixels: Tensor) -> Tensor:
        return self._model(pixels).image_embeds


class CropEncoder(ABC):
    """What CLIP's and DINOv2's encoders of crops have in common. ``size``: side of the crops they take, in pixels;
    ``dim``: length of the unit vectors they make. A crop fills the square at any aspect ratio, so that nothing
    of the object is cut off."""

    KIND: type
    MEAN: Sequence[float]
    STD: Sequence[float]

    def __init__(self, path: Path, device: torch.device) -> None:
        self._use(load_model(self.KIND, path, device))

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        """An encoder of a model that is loaded, as pipelines hold it."""
        encoder = cls.__new__(cls)
        encoder._use(model)
        return encoder

    def _use(self, model: PreTrainedModel) -> None:
        self._model = model
        self.size, self.dim = self.sizes_in(model.config.to_dict())

    @classmethod
    def sizes(cls, path: Path) -> tuple[int, int]:
        """``size`` and ``dim``, from the configuration alone."""
        return cls.sizes_in(load_config(cls.KIND, path))

    @classmethod
    @abstractmethod
    def sizes_in(cls, config: Mapping[str, Any]) -> tuple[int, int]:
        """``size`` and ``dim`` of the model's configuration."""

    @torch.no_grad()
    def encode(self, crops: Sequence[np.ndarray]) -> list[Tensor]:
        """uint8 [size, size, 3] each -> unit vectors fp32 [dim] each."""
        out: list[Tensor] = []
        for start in range(0, len(crops), AT_ONCE):
            device = get_module_execution_device(self._model)
            batch = torch.from_numpy(np.stack(crops[start : start + AT_ONCE])).to(device)
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
    def sizes_in(cls, config: Mapping[str, Any]) -> tuple[int, int]:
        return config["image_size"], config["projection_dim"]

    def _vectors(self, pixels: Tensor) -> Tensor:
        return self._model(pixels).image_embeds


class DinoEncoder(CropEncoder):
    """DINOv2's class token behind the last norm (768 numbers for ViT-B/14, 1024 for ViT-L/14)."""

    KIND, MEAN, STD = Dinov2Model, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    @classmethod
    def sizes_in(cls, config: Mapping[str, Any]) -> tuple[int, int]:
        return min(config["image_size"], DINO_SIZE), config["hidden_size"]

    def _vectors(self, pixels: Tensor) -> Tensor:
        return self._model(pixels).last_hidden_state[:, 0]


def standardise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """[B, 3, H, W] in 0..1 -> less the mean, by the deviation of each channel."""
    options: dict[str, Any] = {"device": pixels.device, "dtype": pixels.dtype}
    middle, deviation = (torch.tensor(values, **options).view(1, -1, 1, 1) for values in (mean, std))
    return (pixels - middle) / deviation
