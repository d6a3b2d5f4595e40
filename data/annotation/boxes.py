"""Objects in pictures by detectors that are asked in words: OWLv2 and Grounding DINO of transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.annotation.people import overlap

OVERLAP = 0.5
"""Of two boxes of a picture that overlap by more (IoU) the surer one stays."""


@dataclass(frozen=True)
class FoundObject:
    """``box``: x0 y0 x1 y1 divided by width and height; ``phrase``: which of those asked for; ``score`` 0 to 1."""

    box: tuple[float, float, float, float]
    phrase: str
    score: float


class BoxDetector(ABC):
    @abstractmethod
    def find(self, image: np.ndarray, phrases: Sequence[str]) -> list[FoundObject]:
        """What of ``phrases`` is seen in uint8 [H, W, 3], the surest first, without duplicates."""


class PhraseDetector(BoxDetector):
    """OWLv2 or Grounding DINO from a folder. ``threshold``: the least score. Raises ``EncoderError``."""

    def __init__(self, path: Path, threshold: float) -> None:
        from transformers import AutoModelForZeroShotObjectDetection

        from stagecoach.data.encoding.encoders import default_device, load_model, load_processor

        self._device, self._threshold = default_device(), threshold
        self._model = load_model(AutoModelForZeroShotObjectDetection, path, self._device)
        self._processor = load_processor(path)
        self._grounding = "grounding" in self._model.config.model_type

    def find(self, image: np.ndarray, phrases: Sequence[str]) -> list[FoundObject]:
        import torch

        text = [[phrase.replace(".", " ") for phrase in phrases]]  # full stops end phrases
        given = self._processor(text=text, images=image, return_tensors="pt").to(self._device, self._model.dtype)
        with torch.inference_mode():
            made = self._model(**given)
        if self._grounding:
            corners, scores, labels = self._grounded(made, given["input_ids"][0], phrases)
        else:
            found = self._processor.post_process_grounded_object_detection(
                made, threshold=0.0, target_sizes=[image.shape[:2]]
            )[0]
            corners = found["boxes"].double().cpu().numpy().reshape(-1, 4) / np.array(image.shape[1::-1] * 2)
            scores, labels = (found[name].double().cpu().numpy() for name in ("scores", "labels"))
        boxes = corners.clip(0, 1)
        kept: list[FoundObject] = []
        for k in np.argsort(-scores, kind="stable"):
            if scores[k] <= self._threshold:
                break
            taken = np.array([one.box for one in kept]).reshape(-1, 4)
            if (boxes[k, 2:] > boxes[k, :2]).all() and not (overlap(taken, boxes[k]) > OVERLAP).any():
                box = tuple(round(float(v), 6) for v in boxes[k])
                kept.append(FoundObject(box, phrases[int(labels[k])], round(float(scores[k]), 4)))
        return kept

    def _grounded(self, made: Any, tokens: Any, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Corners [Q, 4] as fractions, scores and numbers of phrases of Grounding DINO's queries: that phrase of which
        a token scores highest. Its own rule, all tokens above a threshold, gives parts and mixtures of phrases."""
        from stagecoach.data.encoding.encoders import EncoderError

        stop = self._processor.tokenizer.convert_tokens_to_ids(".")
        ends = (tokens == stop).nonzero()[:, 0].tolist()
        most = self._model.config.max_text_len
        if len(ends) != len(phrases) or len(tokens) > most:
            raise EncoderError(
                f"{len(phrases)} phrases as {len(tokens)} tokens with {len(ends)} full stops found, expected at most "
                f"{most} tokens for Grounding DINO and a full stop behind each phrase; give fewer --phrases"
            )
        chances = made.logits[0].sigmoid().double().cpu().numpy()
        spans = zip([1, *(end + 1 for end in ends)], ends, strict=False)  # the first token starts the text
        each = np.stack([chances[:, first:end].max(1) for first, end in spans], 1)
        boxes = made.pred_boxes[0].double().cpu().numpy()
        half = boxes[:, 2:] / 2
        return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], 1), each.max(1), each.argmax(1)


def box_entry(path: Path) -> Mapping[str, Any]:
    """What manifests say of the detector in a folder, without loading it. Raises ``EncoderError``."""
    from transformers import AutoModelForZeroShotObjectDetection

    from stagecoach.data.encoding.encoders import model_entry

    return model_entry(AutoModelForZeroShotObjectDetection, path)
