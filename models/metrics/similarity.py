"""How alike pictures, texts and references are to CLIP and DINOv2, from local folders."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stagecoach.models.common.reduce import Measured, sum_count
from stagecoach.models.metrics.metric import Metric, Unavailable

COSINE = "cosine x 100"
CLIP_FOLDER, DINO_FOLDER = "CLIP's folder", "DINOv2's folder"
METRICS = (
    Metric("clip_score", COSINE, True, needs=CLIP_FOLDER),
    Metric("clip_t", COSINE, True, needs=CLIP_FOLDER),
    Metric("clip_i", COSINE, True, needs=CLIP_FOLDER),
    Metric("dino_i", COSINE, True, needs=DINO_FOLDER),
    Metric("reference_similarity", COSINE, True, needs=f"{DINO_FOLDER}; a detector's boxes"),
)
MOST_DETECTIONS = 3
T = TypeVar("T")


class ClipModel:
    """CLIP's embeddings of pictures and texts, from a folder of a whole CLIP with its tokenizer and processor. Raises
    ``Unavailable`` for any other folder."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        # The encoders take seconds to import, and declarations of metrics are read by every run.
        from transformers import CLIPTextModelWithProjection

        from stagecoach.data.encoding.image_encoders import PictureEmbedder
        from stagecoach.data.encoding.text_encoders import CLIP_LENGTH, TokenEncoder

        class TextEmbedder(TokenEncoder):
            KIND = CLIPTextModelWithProjection

            def _states(self, tokens):
                return self._model(tokens.input_ids, tokens.attention_mask).text_embeds.float().cpu().unbind(0)

        self._pictures = loaded(PictureEmbedder, folder, device, "crop")
        self._texts = loaded(TextEmbedder, folder, folder, device, CLIP_LENGTH)

    def pictures(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """uint8 ``[H, W, 3]`` each -> fp32 ``[N, D]``, as CLIP's processor prepares them (the middle square)."""
        return self._pictures.encode(pictures)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """fp32 ``[N, D]``; a text of more than 77 tokens is cut."""
        return torch.stack(self._texts.encode(texts))


class DinoModel:
    """DINOv2's class tokens, from its folder. Raises ``Unavailable`` for any other."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from stagecoach.data.encoding.image_encoders import DinoEncoder

        self._encoder = loaded(DinoEncoder, folder, device)

    def pictures(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """uint8 ``[H, W, 3]`` each -> unit vectors fp32 ``[N, D]``, of whole pictures, squashed to its square as the
        references of training are."""
        side = self._encoder.size
        squares = [np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC)) for p in pictures]
        return torch.stack(self._encoder.encode(squares))


def similarity(features: Tensor, others: Tensor) -> Measured:
    """Sum and count of the cosines x 100 of features ``[N, D]`` with others ``[N, D]``, or with one, ``[1, D]``."""
    return sum_count(100 * F.cosine_similarity(features.float(), others.float()))


def reference_similarity(candidates: Sequence[Tensor], references: Tensor) -> Measured:
    """Of each reference ``[R, D]`` the largest cosine x 100 with the crops that a detector found for it, ``[n, D]``,
    best first, of which three count; 0 where it found none (XVerse, arXiv 2506.21416, its IP score)."""
    cosines = [
        F.cosine_similarity(found[:MOST_DETECTIONS].float(), reference.float()[None]).max()
        if len(found)
        else reference.new_zeros((), dtype=torch.float32)
        for found, reference in zip(candidates, references, strict=True)
    ]
    return sum_count(100 * torch.stack(cosines))


def crop(picture: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The part of a picture ``[H, W, 3]`` in a box x1 y1 x2 y2 in 0..1, at least one pixel of it."""
    height, width = picture.shape[:2]
    x1, y1 = min(max(round(box[0] * width), 0), width - 1), min(max(round(box[1] * height), 0), height - 1)
    return picture[y1 : max(round(box[3] * height), y1 + 1), x1 : max(round(box[2] * width), x1 + 1)]


def loaded(kind: Callable[..., T], *args: object) -> T:
    """A model of the encoders' kit. Raises ``Unavailable`` where its files are not there or are others."""
    from stagecoach.data.encoding.encoders import EncoderError

    try:
        return kind(*args)
    except EncoderError as error:
        raise Unavailable(str(error)) from error
