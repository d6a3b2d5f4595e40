"""What stands around the network in a pipeline: loaded, or from local folders and trained weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from stagecoach.data.dance_with_music.schema import NAME as FAMILY
from stagecoach.data.encoding.image_encoders import load_processor
from stagecoach.data.encoding.latent_encoders import vae_kind
from stagecoach.models.common.pipeline import is_path, open_model
from stagecoach.models.dance_with_music.network import DanceNetwork
from stagecoach.models.dance_with_music.transformer import FaceModel
from stagecoach.models.weights import load_network, open_weights
from stagecoach.models.weights.opening import Which

M2P = "m2p."
Base = str | Path | Mapping[str, str | Path] | None


def base_paths(base: Base) -> Mapping[str, str | Path] | None:
    """Paths by setting, of which a single one is the denoiser's."""
    if isinstance(base, str | Path):
        return {"weights.denoising_unet": base}
    return base


def open_components(dtype: torch.dtype, vae: Any = None, image_encoder: Any = None, arcface: Any = None) -> dict:
    """Components of a ``DanceWithMusicPipeline`` by name: loaded, or local folders in the Hugging Face layout, whose
    models go to the CPU in ``dtype``; ``arcface`` is an ``.onnx``. The image processor is looked for in the folder of
    its encoder and next to it, and is CLIP's own for an encoder that is loaded. Raises ``EncoderError``."""
    processor = load_processor(Path(image_encoder)) if is_path(image_encoder) else None
    image_encoder = open_model(CLIPVisionModelWithProjection, image_encoder, dtype)
    if image_encoder is not None and processor is None:
        processor = CLIPImageProcessorPil()
    return {
        "vae": open_model(vae_kind(Path(vae)), vae, dtype) if is_path(vae) else vae,
        "image_encoder": image_encoder,
        "image_processor": processor,
        "face_encoder": FaceModel(arcface) if is_path(arcface) else arcface,
    }


def open_music_to_pose(
    source: str | Path, which: Which, base: Mapping[str, str | Path] | None, dtype: torch.dtype
) -> DanceNetwork:
    """MusicToPose alone, of trained weights of any stage that has one. Raises ``ValueError``."""
    weights = open_weights(source, which, family=FAMILY)
    files = {name: file for name, file in weights.files.items() if name.startswith(M2P)}
    if not files:
        raise ValueError(f"{source}: holds no MusicToPose, expected an adapter of stage A, B or C")
    alone = replace(weights, card=replace(weights.card, stage=1), files=files)
    network: Any = load_network(alone, base, dtype=dtype)
    return network
