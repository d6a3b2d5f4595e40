"""Frozen encoders of the builders: Wan's video VAE, umT5 and CLIP, from local folders in the Hugging Face layout.

They take and give what diffusers' Wan pipelines do, so that a network trained on their output can be used there. On a
GPU they compute in bf16, on a CPU in fp32; results are fp32 on the CPU. One thread may use an encoder at a time.
"""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKLWan
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPVisionModel, PreTrainedTokenizerBase, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stagecoach.data.files import sha256_file, sha256_json

SPATIAL_STRIDE = 8
TEMPORAL_STRIDE = 4
TEXT_LENGTH = 512
"""Tokens that Wan's text cross-attention takes; longer prompts are cut."""
VIDEO_PIXELS_AT_ONCE = 512 * 512
"""Clips are encoded together while a frame of all of them has no more pixels; one large clip fills a device alone."""


# The libraries draw a bar for each file, which would hide that of a build.
transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()


class EncoderError(ValueError):
    """A folder does not hold the encoder that was asked for."""


class EncoderEntry(TypedDict):
    """What a manifest says of an encoder: its class, the name of its folder, the sha256 of its weights."""

    name: str
    path_name: str
    sha256: str
    dtype: str


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


class VideoEncoder:
    """Wan's VAE. Latents are the mode of the posterior, less ``latents_mean``, divided by ``latents_std``."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.entry = encoder_entry(AutoencoderKLWan, path, device)
        self._vae = load_model(AutoencoderKLWan, path, device)
        config = self._vae.config
        self.channels: int = config.z_dim
        self._mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
        self._std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
        strides = config.scale_factor_spatial, config.scale_factor_temporal
        if strides != (SPATIAL_STRIDE, TEMPORAL_STRIDE):
            raise EncoderError(
                f"{path}: a VAE with strides {strides} (space, time) found, expected "
                f"{(SPATIAL_STRIDE, TEMPORAL_STRIDE)} as Wan2.1's"
            )

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

    @torch.inference_mode()
    def _latents(self, videos: list[Tensor]) -> list[Tensor]:
        height, width = videos[0].shape[-2:]
        together = max(VIDEO_PIXELS_AT_ONCE // (height * width), 1)
        out: list[Tensor] = []
        for start in range(0, len(videos), together):
            batch = torch.stack(videos[start : start + together]).to(self._vae.device, self._vae.dtype)
            latents = self._vae.encode(batch).latent_dist.mode().float().cpu()
            out += ((latents - self._mean) / self._std).unbind(0)
        return out


class TextEncoder:
    """umT5, with the states of the real tokens only."""

    def __init__(self, path: Path, tokenizer: Path, device: torch.device) -> None:
        self.entry = encoder_entry(UMT5EncoderModel, path, device)
        self._model = load_model(UMT5EncoderModel, path, device)
        self._tokenizer, self.tokenizer_entry = load_tokenizer(tokenizer, self._model.config.vocab_size)
        self.dim: int = self._model.config.d_model

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """-> fp32 [L, dim] each; padding is masked in the attention and cut off after it."""
        tokens = self._tokenizer(
            [clean_prompt(p) for p in prompts],
            padding="longest",
            truncation=True,
            max_length=TEXT_LENGTH,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask
        states = self._model(tokens.input_ids.to(self._model.device), mask.to(self._model.device)).last_hidden_state
        return [s[:n] for s, n in zip(states.float().cpu(), mask.sum(1).tolist(), strict=True)]


class ImageEncoder:
    """CLIP's vision model; the last hidden states but one, as Wan2.1's image-to-video models take them."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.entry = encoder_entry(CLIPVisionModel, path, device)
        self._model = load_model(CLIPVisionModel, path, device)
        self.dim: int = self._model.config.hidden_size
        folders = [path, path.parent / "image_processor"]
        found = next((f for f in folders if (f / "preprocessor_config.json").is_file()), None)
        if found is None:
            raise EncoderError(
                f"{path}: no preprocessor_config.json found in it or in {folders[1]}, expected the one "
                f"of the image encoder"
            )
        self._processor = CLIPImageProcessorPil.from_pretrained(found, local_files_only=True)

    @torch.inference_mode()
    def encode(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        """uint8 [H, W, 3] each -> fp32 [257, dim] each."""
        pixels = self._processor(images=[Image.fromarray(i) for i in images], return_tensors="pt").pixel_values
        states = self._model(pixels.to(self._model.device, self._model.dtype), output_hidden_states=True)
        return list(states.hidden_states[-2].float().cpu())


def clean_prompt(prompt: str) -> str:
    """One line without character references. Diffusers' pipelines do so too; they also mend wrongly decoded characters
    where ftfy is installed, which is left to whoever writes the prompts."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()


def bits(tensor: Tensor) -> np.ndarray:
    """The tensor in bf16, as the uint16 that shards hold."""
    return tensor.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()


def _scaled(clip: np.ndarray) -> Tensor:
    """uint8 [F, H, W, 3] -> fp32 [3, F, H, W] in -1..1."""
    return torch.from_numpy(clip).permute(3, 0, 1, 2).float() / 127.5 - 1


def encoder_folder(path: Path) -> Path:
    """The folder itself. Raises ``EncoderError`` where there is none."""
    if not path.is_dir():
        raise EncoderError(f"{path}: no such folder, expected an encoder in the Hugging Face layout")
    return path


def load_model(kind: type, path: Path, device: torch.device):
    """A frozen model of class ``kind`` on ``device``, in the dtype that encoders compute in.

    Raises ``EncoderError`` for a folder that does not hold such a model, and for weights that lack a part of it, which
    the libraries would make up at random.
    """
    encoder_folder(path)
    try:
        model, found = kind.from_pretrained(
            path, local_files_only=True, output_loading_info=True, torch_dtype=compute_dtype(device)
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EncoderError(f"{path}: {kind.__name__} cannot be loaded from it ({short_error(error)})") from error
    if found["missing_keys"]:
        raise EncoderError(
            f"{path}: no weights found for {sorted(found['missing_keys'])[:3]}, expected all those of a "
            f"{kind.__name__}; give the folder of one"
        )
    return model.eval().requires_grad_(False).to(device)


def load_config(kind: type, path: Path) -> Mapping[str, Any]:
    """The configuration of a model of class ``kind``, from which its sizes are known before it is loaded (diffusers'
    files hold every value, transformers' are completed). Raises ``EncoderError``."""
    encoder_folder(path)
    try:
        if issubclass(kind, diffusers.ConfigMixin):
            return kind.load_config(path, local_files_only=True)
        return kind.config_class.from_pretrained(path, local_files_only=True).to_dict()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(
            f"{path}: no configuration of a {kind.__name__} can be read from it ({short_error(error)})"
        ) from error


def load_tokenizer(path: Path, vocabulary: int) -> tuple[PreTrainedTokenizerBase, EncoderEntry]:
    """A tokenizer for a text encoder that knows ``vocabulary`` tokens, and its entry. Raises ``EncoderError``."""
    encoder_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise EncoderError(f"{path}: no tokenizer can be loaded from it ({short_error(error)})") from error
    if len(tokenizer) > vocabulary:
        raise EncoderError(
            f"{path}: {len(tokenizer)} tokens found, expected at most the {vocabulary} of its text "
            f"encoder; give the tokenizer that belongs to it"
        )
    return tokenizer, EncoderEntry(
        name=type(tokenizer).__name__,
        path_name=path.resolve().name,
        sha256=hash_files(sorted(path.glob("*"))),
        dtype="int64",
    )


def encoder_entry(kind: type, path: Path, device: torch.device) -> EncoderEntry:
    """What the manifest says of the model in ``path``. Raises ``EncoderError`` where it holds no weights."""
    weights = sorted(encoder_folder(path).glob("*.safetensors"))
    if not weights:
        raise EncoderError(
            f"{path}: no .safetensors found, expected the weights of a {kind.__name__}; found "
            f"{sorted(p.name for p in path.iterdir())[:8]}"
        )
    return EncoderEntry(
        name=kind.__name__,
        path_name=path.resolve().name,
        sha256=hash_files(weights),
        dtype=str(compute_dtype(device)).removeprefix("torch."),
    )


def encoder_entries(
    models: Mapping[str, tuple[type, Path]], tokenizers: Mapping[str, tuple[Path, str]] | None = None
) -> dict[str, EncoderEntry]:
    """What the manifest says of the models (class, folder) and the tokenizers (folder, role of the text encoder) by
    role, without loading the models. Raises ``EncoderError``."""
    device = default_device()
    entries = {role: encoder_entry(kind, path, device) for role, (kind, path) in models.items()}
    for role, (path, text_role) in (tokenizers or {}).items():
        entries[role] = load_tokenizer(path, load_config(*models[text_role])["vocab_size"])[1]
    return entries


def hash_files(files: Sequence[Path]) -> str:
    """Of the one file, or of the names and hashes of several."""
    hashes = {file.name: sha256_file(file) for file in files if file.is_file()}
    return next(iter(hashes.values())) if len(hashes) == 1 else sha256_json(hashes)


def short_error(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
