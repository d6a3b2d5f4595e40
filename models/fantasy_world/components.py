"""The encoders around the network, of a pipeline: loaded, or from local folders in the Hugging Face layout."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from transformers import CLIPVisionModel, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stagecoach.data.encoding.encoders import load_model, load_tokenizer
from stagecoach.data.encoding.image_encoders import load_processor

ANY = 1 << 31
"""Size of a vocabulary that no tokenizer exceeds."""


def open_components(
    dtype: torch.dtype, vae: Any = None, text_encoder: Any = None, tokenizer: Any = None, image_encoder: Any = None
) -> dict[str, Any]:
    """Components of a ``FantasyWorldPipeline`` by name, models on the CPU in ``dtype``; what is no path is passed on.
    The image processor is looked for in the folder of its encoder and beside it, and is CLIP's own for an encoder that
    is loaded. Raises ``EncoderError`` for a folder that does not hold what it should."""

    def opened(kind: type, given: Any) -> Any:
        return load_model(kind, Path(given), torch.device("cpu"), dtype) if _is_path(given) else given

    text_encoder = opened(UMT5EncoderModel, text_encoder)
    if _is_path(tokenizer):
        vocabulary = ANY if text_encoder is None else text_encoder.config.vocab_size
        tokenizer = load_tokenizer(Path(tokenizer), vocabulary)[0]
    processor = load_processor(Path(image_encoder)) if _is_path(image_encoder) else None
    image_encoder = opened(CLIPVisionModel, image_encoder)
    if image_encoder is not None and processor is None:
        processor = CLIPImageProcessorPil()
    return {
        "vae": opened(AutoencoderKLWan, vae),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "image_encoder": image_encoder,
        "image_processor": processor,
    }


def _is_path(given: Any) -> bool:
    return isinstance(given, str | Path)
