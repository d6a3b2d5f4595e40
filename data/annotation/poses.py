"""Poses of the person in a video, as DWPose's 134 points: whole-body networks from local files.

- DWPose and RTMPose as .onnx (Jiang et al. 2023): crops by a detector's box, RGB, SimCC outputs: for each point a
  distribution over the columns and one over the rows, at twice the input's resolution.
- ViTPose of transformers, heatmaps; with 17 points (COCO) hands, feet and face are not found, with 133 all are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from stagecoach.data.annotation.people import PersonDetector, TransformersDetector, YoloxDetector, track_person
from stagecoach.data.dance_with_music.pose_formats import from_coco
from stagecoach.data.dance_with_music.skeleton import KEYPOINTS
from stagecoach.data.encoding.encoders import EncoderError, default_device, encoder_entry, load_model, load_processor
from stagecoach.data.encoding.onnx_file import OnnxFile, onnx_entry

if TYPE_CHECKING:
    from stagecoach.data.encoding.encoders import EncoderEntry

TOGETHER = 16
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of ImageNet's red, green and blue, by which RTMPose's crops are normalised."""
PADDING = 1.25
"""By which a crop is larger than the person's box."""
SIMCC_RATIO = 2
COCO, WHOLE_BODY = 17, 133
POSE_MODEL, DETECTOR = "a pose network (DWPose's dw-ll_ucoco_384.onnx, say)", "a detector of persons"


class PoseModel(ABC):
    """Points of persons whose boxes are known."""

    @abstractmethod
    def points(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [N, 17 or 133, 3] of one person in each of uint8 [H, W, 3]: x and y in pixel indices, confidence."""


class SimccModel(PoseModel):
    """Raises ``EncoderError`` for a file that is not such a network."""

    def __init__(self, path: Path) -> None:
        self._model = OnnxFile(path, POSE_MODEL, "annotate")
        shape = list(next(iter(self._model.inputs.values())))
        if len(shape) != 4 or shape[1] != 3 or not all(isinstance(size, int) for size in shape[2:]):
            raise self._unlike(shape, list(self._model.outputs.values()))
        self._batch = shape[0] if isinstance(shape[0], int) else TOGETHER
        self._size = np.array(shape[:1:-1])

    def points(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> np.ndarray:
        out = []
        for start in range(0, len(images), self._batch):
            part = slice(start, start + self._batch)
            middles, scales = zip(*(self._extent(box) for box in boxes[part]), strict=True)
            crops = [self._crop(*found) for found in zip(images[part], middles, scales, strict=True)]
            columns, rows = self._run(np.stack(crops))
            at = np.stack([columns.argmax(-1), rows.argmax(-1)], -1) / SIMCC_RATIO
            sure = np.minimum(columns.max(-1), rows.max(-1)).clip(0, 1)
            xy = np.array(middles)[:, None] + (at - self._size / 2) * np.array(scales)[:, None, None]
            out.append(np.concatenate([xy, sure[..., None]], -1))
        return np.concatenate(out)

    def _run(self, crops: np.ndarray) -> list[np.ndarray]:
        made = self._model(crops)
        wanted = [(len(crops), WHOLE_BODY, SIMCC_RATIO * size) for size in self._size]
        if [one.shape for one in made] != wanted:  # files seldom declare it
            raise self._unlike(list(crops.shape), [list(one.shape) for one in made])
        return made

    def _unlike(self, given: list[Any], made: list[Any]) -> EncoderError:
        return EncoderError(
            f"{self._model.path}: a model from {given} to {made} found, expected one from [N, 3, H, W] to {WHOLE_BODY} "
            f"points as [N, {WHOLE_BODY}, {SIMCC_RATIO} W] and [N, {WHOLE_BODY}, {SIMCC_RATIO} H], as DWPose's and "
            "RTMPose's whole-body files have it"
        )

    def _extent(self, box: np.ndarray) -> tuple[np.ndarray, float]:
        """Middle of a box, and pixels of the picture per pixel of the crop that holds it."""
        return (box[:2] + box[2:]) / 2, float(((box[2:] - box[:2]) * PADDING / self._size).max())

    def _crop(self, image: np.ndarray, middle: np.ndarray, scale: float) -> np.ndarray:
        # Pixel indices map by scale * u + first; Pillow counts from the corners of pixels, half a pixel before.
        first = middle - scale * self._size / 2 + 0.5 - 0.5 * scale
        matrix = (scale, 0, float(first[0]), 0, scale, float(first[1]))
        size = int(self._size[0]), int(self._size[1])
        crop = Image.fromarray(image).transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        return ((np.asarray(crop, np.float32) - MEAN) / DEVIATION).transpose(2, 0, 1).astype(np.float32)


class VitPoseModel(PoseModel):
    """Raises ``EncoderError`` for a folder that is not such a network. ``dataset``: which of a ViTPose+ network's
    experts is asked; 0 is COCO's, 5 the whole body's."""

    def __init__(self, path: Path) -> None:
        from transformers import VitPoseForPoseEstimation

        self._device = default_device()
        self._model = load_model(VitPoseForPoseEstimation, path, self._device)
        self._processor = load_processor(path)
        count = self._model.config.num_labels
        if count not in (COCO, WHOLE_BODY):
            raise EncoderError(f"{path}: a network of {count} points found, expected {COCO} or {WHOLE_BODY}")
        experts = self._model.config.backbone_config.num_experts
        self._expert = None if experts == 1 else 0 if count == COCO else experts - 1

    def points(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        asked = [[[*box[:2], *(box[2:] - box[:2])]] for box in boxes]
        asked = [np.array(box, np.float64) for box in asked]
        given = self._processor(list(images), boxes=asked, return_tensors="pt").to(self._device, self._model.dtype)
        if self._expert is not None:
            given["dataset_index"] = torch.full((len(images),), self._expert, device=self._device)
        with torch.inference_mode():
            made = self._model(**given)
        found = self._processor.post_process_pose_estimation(made, boxes=asked)
        return np.stack(
            [
                np.concatenate([one[0]["keypoints"].double().numpy(), one[0]["scores"].double().numpy()[:, None]], 1)
                for one in found
            ]
        )


class PoseEstimator:
    """The pose of one person of a video: boxes by ``detector``, points by ``model``."""

    def __init__(self, model: PoseModel, detector: PersonDetector) -> None:
        self._model, self._detector = model, detector

    def estimate(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        """Points of the largest person of a video, who is then followed by overlap.

        Args:
            frames: uint8 [H, W, 3] RGB, in the order of time; read once.

        Returns:
            float32 [T, 134, 3]: x and y divided by width and height, confidence in 0..1; all 0 where nobody was found,
            and for points that the network does not know.
        """
        tracked, out = track_person(frames, self._detector), [np.zeros((0, KEYPOINTS, 3))]
        while part := list(islice(tracked, TOGETHER)):
            there = [number for number, (_, box) in enumerate(part) if box is not None]
            poses = np.zeros((len(part), KEYPOINTS, 3))
            if there:
                found = self._model.points([part[k][0] for k in there], [part[k][1] for k in there])
                sizes = np.array([part[k][0].shape[1::-1] for k in there])
                found = np.pad(found, ((0, 0), (0, WHOLE_BODY - found.shape[1]), (0, 0)))
                poses[there] = np.stack([from_coco(one) for one in found])
                poses[there, :, :2] /= sizes[:, None]
            out.append(poses)
        table = np.concatenate(out)
        table[..., 2] = table[..., 2].clip(0, 1)
        return np.where(table[..., 2:] > 0, table, 0).astype(np.float32)


def open_pose_estimator(pose: Path, detector: Path) -> PoseEstimator:
    """``pose``: a whole-body .onnx of DWPose or RTMPose, or a folder of ViTPose; ``detector``: YOLOX as .onnx, or a
    folder of transformers' detectors. Raises ``EncoderError``."""
    check_pose_paths(pose, detector)
    model = SimccModel(pose) if pose.is_file() else VitPoseModel(pose)
    return PoseEstimator(model, YoloxDetector(detector) if detector.is_file() else TransformersDetector(detector))


def check_pose_paths(pose: Path, detector: Path) -> None:
    """Raises ``EncoderError`` where one does not exist."""
    for path, what in ((pose, POSE_MODEL), (detector, DETECTOR)):
        if not path.exists():
            raise EncoderError(f"{path}: missing, expected {what} as an .onnx file or a folder of transformers")


def pose_entries(pose: Path, detector: Path) -> Mapping[str, EncoderEntry]:
    """What manifests say of both, without loading them. Raises ``EncoderError``."""
    check_pose_paths(pose, detector)
    return {
        "pose": onnx_entry(pose, "SimCC", POSE_MODEL) if pose.is_file() else _entry("VitPoseForPoseEstimation", pose),
        "person_detector": onnx_entry(detector, "YOLOX", DETECTOR)
        if detector.is_file()
        else _entry("AutoModelForObjectDetection", detector),
    }


def _entry(kind: str, path: Path) -> EncoderEntry:
    import transformers

    return encoder_entry(getattr(transformers, kind), path, default_device())
