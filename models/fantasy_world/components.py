"""The encoders around the network, of a pipeline: loaded, or from local folders in the Hugging Face layout."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from transformers import CLIPVisionModel, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stagecoach.data.encoding.image_encoders import load_processor
from stagecoach.models.common.pipeline import is_path, open_model, open_tokenizer


def open_components(
    dtype: torch.dtype, vae: Any = None, text_encoder: Any = None, tokenizer: Any = None, image_encoder: Any = None
) -> dict[str, Any]:
    """Components of a ``FantasyWorldPipeline`` by name, models on the CPU in ``dtype``; what is no path is passed on.
    The image processor is looked for in the folder of its encoder and next to it, and is CLIP's own for an encoder that
    is loaded. Raises ``EncoderError`` for a folder that does not hold what it should."""

    text_encoder = open_model(UMT5EncoderModel, text_encoder, dtype)
    processor = load_processor(Path(image_encoder)) if is_path(image_encoder) else None
    image_encoder = open_model(CLIPVisionModel, image_encoder, dtype)
    if image_encoder is not None and processor is None:
        processor = CLIPImageProcessorPil()
    return {
        "vae": open_model(AutoencoderKLWan, vae, dtype),
        "text_encoder": text_encoder,
        "tokenizer": open_tokenizer(tokenizer, text_encoder),
        "image_encoder": image_encoder,
        "image_processor": processor,
    }
