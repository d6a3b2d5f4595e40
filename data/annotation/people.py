"""Persons in the frames of a video: detectors from local files, and which of their boxes is the person to follow."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stagecoach.data.encoding.encoders import EncoderError, default_device, load_model, load_processor
from stagecoach.data.encoding.onnx_file import OnnxFile

SURE = 0.3
"""The least score of a person's box (DWPose's)."""
OVERLAP = 0.45
"""Of two boxes that overlap by more (IoU) the surer one stays (DWPose's)."""
SAME = 0.3
"""The least IoU of one person's boxes in neighbouring frames."""
GAP = 5
"""Frames without a box over which a track is carried on, by linear interpolation."""
PERSON = "person"


class PersonDetector(ABC):
    @abstractmethod
    def boxes(self, image: np.ndarray) -> np.ndarray:
        """Persons in uint8 [H, W, 3] RGB, the surest first: float64 [N, 5], x0 y0 x1 y1 in pixels and the score."""


class YoloxDetector(PersonDetector):
    """YOLOX as DWPose and rtmlib publish it: BGR from 0 to 255 in the upper left of a grey square.

    Its output is either the raw grid [1, A, 5 + classes] (Ge et al. 2021, section 2.1), the person being class 0, or
    boxes with scores [1, N, 5], where the file holds the suppression of overlaps too. Raises ``EncoderError``.
    """

    def __init__(self, path: Path) -> None:
        self._model = OnnxFile(path, "a detector of persons (DWPose's yolox_l.onnx, say)", "annotate")
        shape, made = (list(next(iter(found.values()))) for found in (self._model.inputs, self._model.outputs))
        sizes = [size for size in shape[2:] if isinstance(size, int) and size % 32 == 0]
        if len(shape) != 4 or shape[1] != 3 or len(sizes) != 2 or len(made) != 3:
            raise EncoderError(
                f"{path}: a model from {shape} to {made} found, expected YOLOX's from [1, 3, H, W] (multiples of 32) "
                "to [1, A, 5 + classes] or [1, N, 5]"
            )
        self._height, self._width = sizes

    def boxes(self, image: np.ndarray) -> np.ndarray:
        height, width, _ = image.shape
        ratio = min(self._height / height, self._width / width)
        small = Image.fromarray(image).resize(
            (max(int(width * ratio), 1), max(int(height * ratio), 1)), Image.Resampling.BILINEAR
        )
        square = np.full((self._height, self._width, 3), 114, np.float32)
        square[: small.height, : small.width] = np.asarray(small)[..., ::-1]
        found = self._model(np.ascontiguousarray(square.transpose(2, 0, 1)[None]))
        if found[0].shape[-1] > 5:
            boxes = _suppress(self._decode(found[0][0].astype(np.float64)))
        else:
            boxes = found[0][0].astype(np.float64)
            if len(found) > 1:
                boxes = boxes[found[1][0].astype(int) == 0]
        scale = np.array([small.width / width, small.height / height] * 2)  # whole pixels, so not exactly the ratio
        boxes[:, :4] = (boxes[:, :4] / scale).clip(0, [width, height] * 2)
        boxes = boxes[(boxes[:, 4] > SURE) & (boxes[:, 2:4] > boxes[:, :2]).all(1)]
        return boxes[np.argsort(-boxes[:, 4], kind="stable")]

    def _decode(self, grid: np.ndarray) -> np.ndarray:
        cells = []
        for stride in (8, 16, 32):
            y, x = np.mgrid[: self._height // stride, : self._width // stride]
            cells.append(np.stack([x.ravel(), y.ravel(), np.full(x.size, stride)], 1))
        table = np.concatenate(cells)
        if len(table) != len(grid):
            raise EncoderError(
                f"{self._model.path}: {len(grid)} boxes found, expected {len(table)}, those of strides 8, 16 and 32"
            )
        stride = table[:, 2:]
        middle, size = (grid[:, :2] + table[:, :2]) * stride, np.exp(grid[:, 2:4]) * stride
        score = grid[:, 4] * grid[:, 5]
        mine = grid[:, 5] >= grid[:, 5:].max(1)
        return np.concatenate([middle - size / 2, middle + size / 2, score[:, None]], 1)[mine & (score > SURE)]


class TransformersDetector(PersonDetector):
    """A detector of transformers that knows the class "person" (RT-DETR, D-FINE). Raises ``EncoderError``."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForObjectDetection

        self._device = default_device()
        self._model = load_model(AutoModelForObjectDetection, path, self._device)
        self._processor = load_processor(path)
        labels = {str(name).lower(): number for number, name in self._model.config.id2label.items()}
        if PERSON not in labels:
            raise EncoderError(
                f"{path}: a detector of {sorted(labels)[:4]} ... found, expected one that knows {PERSON!r}"
            )
        self._label = labels[PERSON]

    def boxes(self, image: np.ndarray) -> np.ndarray:
        import torch

        given = self._processor(images=image, return_tensors="pt").to(self._device, self._model.dtype)
        with torch.inference_mode():
            made = self._model(**given)
        found = self._processor.post_process_object_detection(made, threshold=SURE, target_sizes=[image.shape[:2]])[0]
        boxes, scores, labels = (found[name].double().cpu().numpy() for name in ("boxes", "scores", "labels"))
        return _suppress(np.concatenate([boxes, scores[:, None]], 1)[labels == self._label])


def track_person(frames: Iterable[np.ndarray], detector: PersonDetector) -> Iterator[tuple[np.ndarray, Any]]:
    """Each frame with the box float64 [4] of one person, None where there is none: the largest of the first frame that
    has any, then whoever overlaps the box before most. Up to ``GAP`` frames without a box are bridged; after more of
    them the largest is taken again."""
    waiting: deque[np.ndarray] = deque()
    last: np.ndarray | None = None
    for image in frames:
        box = _chosen(detector.boxes(image), last)
        if box is None:
            waiting.append(image)
            if last is None or len(waiting) > GAP:
                last = None
                yield from ((waiting.popleft(), None) for _ in range(len(waiting)))
            continue
        steps = len(waiting) + 1
        for step in range(1, steps):
            yield waiting.popleft(), None if last is None else last + (box - last) * step / steps
        last = box
        yield image, box
    yield from ((image, None) for image in waiting)


def _chosen(boxes: np.ndarray, last: np.ndarray | None) -> np.ndarray | None:
    if not len(boxes):
        return None
    if last is None:
        return boxes[int(np.prod(boxes[:, 2:4] - boxes[:, :2], axis=1).argmax()), :4]
    shared = overlap(boxes[:, :4], last)
    return boxes[int(shared.argmax()), :4] if shared.max() >= SAME else None


def overlap(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """IoU of boxes [N, 4] with one of [4]."""
    inner = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2])
    shared = inner.clip(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (other[2:] - other[:2]).prod()
    return shared / np.maximum(areas - shared, 1e-12)


def _suppress(boxes: np.ndarray) -> np.ndarray:
    """The boxes by falling score without those that overlap a surer one."""
    rest, kept = boxes[np.argsort(-boxes[:, 4], kind="stable")], []
    while len(rest):
        kept.append(rest[0])
        rest = rest[1:][overlap(rest[1:, :4], rest[0, :4]) <= OVERLAP]
    return np.array(kept).reshape(-1, 5)
