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

        text: Any = [list(phrases)]
        given = self._processor(text=text, images=image, return_tensors="pt").to(self._device, self._model.dtype)
        with torch.inference_mode():
            made = self._model(**given)
        sizes = [image.shape[:2]]
        if self._grounding:
            found = self._processor.post_process_grounded_object_detection(
                made, given["input_ids"], threshold=self._threshold, target_sizes=sizes
            )[0]
        else:
            found = self._processor.post_process_grounded_object_detection(
                made, threshold=self._threshold, target_sizes=sizes, text_labels=text
            )[0]
        size = np.array(image.shape[1::-1] * 2)
        boxes = (found["boxes"].double().cpu().numpy().reshape(-1, 4) / size).clip(0, 1)
        scores, labels = found["scores"].double().cpu().numpy(), found["text_labels"]
        kept: list[FoundObject] = []
        for k in np.argsort(-scores, kind="stable"):
            taken = np.array([one.box for one in kept]).reshape(-1, 4)
            whole = (boxes[k, 2:] > boxes[k, :2]).all() and str(labels[k]).strip()
            if whole and not (overlap(taken, boxes[k]) > OVERLAP).any():
                box = tuple(round(float(v), 6) for v in boxes[k])
                kept.append(FoundObject(box, str(labels[k]).strip(), round(float(scores[k]), 4)))
        return kept


def box_entry(path: Path) -> Mapping[str, Any]:
    """What manifests say of the detector in a folder, without loading it. Raises ``EncoderError``."""
    from transformers import AutoModelForZeroShotObjectDetection

    from stagecoach.data.encoding.encoders import model_entry

    return model_entry(AutoModelForZeroShotObjectDetection, path)
