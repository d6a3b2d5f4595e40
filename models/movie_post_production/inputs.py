"""What a user gives the pipeline - components, objects - as the network takes it, and what it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import CLIPTextModel, CLIPVisionModelWithProjection, Dinov2Model, T5EncoderModel

from stagecoach.data.encoding.image_encoders import ClipEncoder, CropEncoder, DinoEncoder
from stagecoach.data.encoding.text_encoders import PooledTextEncoder
from stagecoach.data.movie_post_production.requests import RequestedObject, parse_object
from stagecoach.models.common.pipeline import is_path, open_model, open_tokenizer
from stagecoach.models.family import Progress
from stagecoach.models.movie_post_production.config import MoviePostConfig
from stagecoach.models.movie_post_production.layout.instances import Instances, make_instances

MODELS = {
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
    "image_encoder": CLIPVisionModelWithProjection,
    "dino": Dinov2Model,
}
TOKENIZERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
OF_FLUX = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
"""Parts of FLUX's own folder."""


@dataclass
class MoviePostOutput(BaseOutput):
    """Pictures of B samples with up to N objects.

    ``images``: as ``output_type`` says: ``pil`` a list, ``np`` fp32 ``[B, H, W, 3]`` in 0..1, ``pt`` ``[B, 3, H, W]``,
    ``latent`` ``[B, 16, h, w]``. ``boxes`` fp32 ``[B, N, 4]``, padded with zeros, and ``alpha`` fp32 ``[B, N]`` in the
    first step, on the CPU; None where no objects were given."""

    images: Any
    boxes: Tensor | None = None
    alpha: Tensor | None = None


def open_components(dtype: torch.dtype, flux: Any = None, **given: Any) -> dict[str, Any]:
    """Components of a ``MoviePostPipeline`` by name: loaded, or local folders in the Hugging Face layout, whose models
    go to the CPU in ``dtype``; those of FLUX that are not given are the folders of these names in ``flux``. Raises
    ``EncoderError`` for a folder that does not hold what it should."""
    folders = {name: Path(flux) / name for name in OF_FLUX} if is_path(flux) else {}
    given = folders | {name: value for name, value in given.items() if value is not None}
    found = {name: open_model(kind, given.get(name), dtype) for name, kind in MODELS.items()}
    return found | {name: open_tokenizer(given.get(name), found[model]) for name, model in TOKENIZERS.items()}


def parse_objects(objects: Any, prompts: int) -> list[list[RequestedObject]]:
    """The objects of each prompt: a list for all of them, or a list of lists. Raises ``ValueError``."""
    nested = bool(objects) and all(isinstance(each, list | tuple) for each in objects)
    groups = [list(group) for group in objects] if nested else [list(objects)] * prompts
    if len(groups) != prompts:
        raise ValueError(f"objects of {len(groups)} pictures given for {prompts} prompts, expected as many")
    return [
        [parse_object(value, f"objects of prompt {p}: object {i}", Path(), i) for i, value in enumerate(group)]
        for p, group in enumerate(groups)
    ]


def encode_objects(
    groups: Sequence[Sequence[RequestedObject]],
    clip: ClipEncoder | None,
    dino: DinoEncoder | None,
    text: PooledTextEncoder | None,
    config: MoviePostConfig,
) -> dict[str, Tensor]:
    """The fields of a batch of shards that say what the objects of each picture are, padded with zeros: ``boxes``,
    ``depth``, ``clip``, ``dino``, and ``object_text`` where there is an encoder for it. Raises ``ValueError`` where a
    reference is given and no encoder of crops."""
    own = config.instance
    widths = {"boxes": 4, "clip": own.clip_dim, "dino": own.dino_dim, "object_text": config.backbone.pooled_dim}
    count = max(map(len, groups))
    fields = {name: torch.zeros(len(groups), count, width) for name, width in widths.items()}
    fields["depth"] = torch.zeros(len(groups), count, dtype=torch.uint8)
    places = [(p, i, item) for p, group in enumerate(groups) for i, item in enumerate(group)]
    for p, i, item in places:
        fields["boxes"][p, i], fields["depth"][p, i] = torch.tensor(item.box), item.depth
    shown = [(p, i, item.reference) for p, i, item in places if item.reference is not None]
    encoders: Mapping[str, CropEncoder | None] = {"clip": clip, "dino": dino}
    for name, encoder in encoders.items() if shown else ():
        if encoder is None:
            component = "image_encoder" if name == "clip" else name
            raise ValueError(
                f"an object has a reference, and the pipeline has no {component} to see it; give {component}= where it "
                "is made, or object_embeds"
            )
        crops: list[np.ndarray] = [reference.cut((encoder.size, encoder.size)) for _, _, reference in shown]
        for (p, i, _), vector in zip(shown, encoder.encode(crops), strict=True):
            if len(vector) != widths[name]:
                raise ValueError(
                    f"vectors of {len(vector)} numbers by the pipeline's {name}, expected instance.{name}_dim = "
                    f"{widths[name]}; give the encoder that the shards were built with"
                )
            fields[name][p, i] = vector
    if text is None or not own.text:
        del fields["object_text"]
    elif places:
        for (p, i, _), state in zip(places, text.encode([item.text for _, _, item in places]), strict=True):
            fields["object_text"][p, i] = state
    return fields


def make_references(
    fields: Mapping[str, Tensor] | None, config: MoviePostConfig, stage: int, prompts: int
) -> Instances:
    """``Instances`` of the ``fields`` (None: no objects), nothing withheld. Raises ``ValueError``."""
    own = config.instance
    if fields is None:
        fields = {
            "boxes": torch.zeros(prompts, 0, 4),
            "depth": torch.zeros(prompts, 0, dtype=torch.uint8),
            "clip": torch.zeros(prompts, 0, own.clip_dim),
            "dino": torch.zeros(prompts, 0, own.dino_dim),
        }
    lacking = sorted({"boxes", "depth", "clip", "dino"} - set(fields))
    if lacking:
        raise ValueError(f"object_embeds lack {', '.join(lacking)}, expected boxes, depth, clip, dino as in shards")
    if len(fields["boxes"]) != prompts:
        raise ValueError(f"object_embeds of {len(fields['boxes'])} pictures for {prompts} prompts, expected as many")
    uids = torch.arange(prompts)
    batch = {**fields, "uid": uids, "rng_key": uids}
    return make_instances(batch, config, Progress(0, 1, stage, 0, training=False))
