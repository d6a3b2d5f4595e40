"""Whether objects are where they were asked for: the layout grounding score.

After InstanceAssemble (arXiv 2509.16691), mIoU only: its scores of colour, texture and shape need answers of a vision
language model. Its detector is GroundingDINO with Swin-T; a score is comparable for one detector only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import TypedDict

from stagecoach.data.reading import DamagedError, read_json
from stagecoach.models.common.reduce import Measured, sum_count
from stagecoach.models.metrics.metric import Metric, Unavailable
from stagecoach.models.metrics.similarity import loaded

METRICS = (Metric("layout_grounding_score", "IoU", True, needs="GroundingDINO's folder, or a file of detections"),)
BOX_THRESHOLD, TEXT_THRESHOLD = 0.35, 0.25
FOUND = 0.5
"""The least IoU of a box that counts as found."""


class Detection(TypedDict):
    """``box``: x1 y1 x2 y2 in 0..1 of the picture."""

    category: str
    box: list[float]
    score: float


def layout_grounding_score(boxes: Tensor, detections: Sequence[Tensor]) -> Measured:
    """Sum over boxes ``[N, 4]`` (x1 y1 x2 y2) of the best IoU with what was detected when asked for the category of
    each, ``[n, 4]``, where it is at least a half, else 0; and their count. Boxes weigh alike, not pictures."""
    pairs = zip(boxes, detections, strict=True)
    best = [iou(box[None], found).max() if len(found) else box.new_zeros(()) for box, found in pairs]
    scores = torch.stack(best) if best else boxes.new_zeros(0)
    return sum_count(torch.where(scores >= FOUND, scores, 0.0))


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes ``[N, 4]`` or ``[1, 4]`` and others ``[N, 4]``, by pairs; 0 of empty ones."""
    overlap = torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])
    shared = overlap.clamp_min(0).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).clamp_min(0).prod(-1) for x in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared).clamp_min(1e-12)


def read_detections(path: Path) -> dict[str, list[Detection]]:
    """A JSON file of detections by the name of the picture, made with any detector:
    ``{"sample-0": [{"category": "red ball", "box": [0.1, 0.2, 0.4, 0.6], "score": 0.8}]}``. Raises ``Unavailable``."""
    try:
        found = read_json(path, dict[str, list[Detection]])
    except DamagedError as error:
        raise Unavailable(str(error)) from error
    for picture, detections in found.items():
        for detection in detections:
            x1, y1, x2, y2 = detection["box"] if len(detection["box"]) == 4 else (1.0, 1.0, 0.0, 0.0)
            if not (-1 <= x1 <= x2 <= 2 and -1 <= y1 <= y2 <= 2):
                raise Unavailable(f"{path}: {picture}: box {detection['box']} found, expected x1 y1 x2 y2 in 0..1")
    return found


def detected(found: Mapping[str, Sequence[Detection]], picture: str, categories: Sequence[str]) -> list[Tensor]:
    """What the detections of a file have for each of ``categories`` in a picture, ``[n, 4]``. Raises ``Unavailable``
    for a picture that the file does not name: nothing detected is an empty list."""
    if picture not in found:
        raise Unavailable(
            f"the detections name no picture {picture!r}, expected a list for it, empty where it has none"
        )
    by_category = {category: [d["box"] for d in found[picture] if d["category"] == category] for category in categories}
    return [torch.tensor(by_category[category], dtype=torch.float32).view(-1, 4) for category in categories]


class GroundingDino:
    """GroundingDINO from a local folder with its processor. Raises ``Unavailable`` for any other folder."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

        from stagecoach.data.encoding.encoders import load_model

        self._model = loaded(load_model, GroundingDinoForObjectDetection, folder, device)
        try:
            self._processor = GroundingDinoProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise Unavailable(f"{folder}: no processor of GroundingDINO can be loaded from it ({error})") from error

    @torch.inference_mode()
    def detect(self, picture: np.ndarray, categories: Sequence[str]) -> list[Tensor]:
        """For each category, asked for by itself, the boxes ``[n, 4]`` in 0..1 that a picture uint8 ``[H, W, 3]`` has,
        best first."""
        found: dict[str, Tensor] = {}
        for category in dict.fromkeys(categories):
            text = category.lower().strip().rstrip(".") + "."
            inputs = self._processor(images=Image.fromarray(picture), text=text, return_tensors="pt")
            inputs = inputs.to(self._model.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
            result = self._processor.post_process_grounded_object_detection(
                self._model(**inputs), inputs["input_ids"], threshold=BOX_THRESHOLD, text_threshold=TEXT_THRESHOLD
            )[0]
            found[category] = result["boxes"][result["scores"].argsort(descending=True)].float().cpu()
        return [found[category] for category in categories]
