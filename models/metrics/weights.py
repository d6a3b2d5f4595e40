"""The networks that metrics look through, each from a file or folder that the user gives, opened where first needed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from stagecoach.models.metrics.distribution import FeatureFile
from stagecoach.models.metrics.layout import GroundingDino, read_detections
from stagecoach.models.metrics.metric import Absent, Unavailable, measured
from stagecoach.models.metrics.pictures import Lpips
from stagecoach.models.metrics.similarity import ClipModel, DinoModel, loaded


@dataclass(frozen=True)
class WeightPaths:
    """Where they are; None is what is not given."""

    lpips: Path | None = None
    lpips_kind: Literal["alex", "vgg"] = "alex"
    inception: Path | None = None
    i3d: Path | None = None
    clip: Path | None = None
    dino: Path | None = None
    grounding_dino: Path | None = None
    arcface: Path | None = None
    detections: Path | None = None
    pose_estimator: Path | None = None
    person_detector: Path | None = None


WHAT = {
    "lpips": "torchvision's AlexNet or VGG-16 file",
    "inception": "the TorchScript file of Inception",
    "i3d": "the TorchScript file of I3D",
    "clip": "CLIP's folder",
    "dino": "DINOv2's folder",
    "grounding_dino": "GroundingDINO's folder",
    "arcface": "ArcFace's .onnx file",
    "detections": "a file of detections",
    "pose_estimator": "a pose network (.onnx, or ViTPose's folder)",
    "person_detector": "a detector of persons (.onnx or folder)",
}


class Models:
    """``models("clip")`` gives the network, the same one each time. Raises ``Unavailable`` where its path is not given
    or holds something else."""

    def __init__(self, paths: WeightPaths = WeightPaths(), device: torch.device | str = "cpu") -> None:
        self.paths, self._device = paths, torch.device(device)
        self._opened: dict[str, Any] = {}

    def given(self, name: str) -> bool:
        return getattr(self.paths, name) is not None

    def __call__(self, name: str) -> Any:
        if name not in self._opened:
            self._opened[name] = measured(self._open, name)
        found = self._opened[name]
        if isinstance(found, Absent):
            raise Unavailable(found.reason)
        return found

    def _open(self, name: str) -> Any:
        path, device = getattr(self.paths, name), self._device
        if path is None:
            raise Unavailable(f"{WHAT[name]} is not given, expected {name}: its path")
        openers: dict[str, Callable[[], Any]] = {
            "lpips": lambda: Lpips(path, self.paths.lpips_kind).to(device),
            "inception": lambda: FeatureFile(path, device),
            "i3d": lambda: FeatureFile(path, device),
            "clip": lambda: ClipModel(path, device),
            "dino": lambda: DinoModel(path, device),
            "grounding_dino": lambda: GroundingDino(path, device),
            "arcface": lambda: _face_encoder(path),
            "detections": lambda: read_detections(path),
            "pose_estimator": lambda: _pose_estimator(path, self.paths.person_detector),
        }
        return openers[name]()


def _face_encoder(path: Path) -> Any:
    from stagecoach.data.encoding.face_encoder import FaceEncoder

    return loaded(FaceEncoder, path)


def _pose_estimator(path: Path, detector: Path | None) -> Any:
    from stagecoach.data.annotation.poses import open_pose_estimator

    if detector is None:
        raise Unavailable(f"{WHAT['person_detector']} is not given, expected person_detector: its path")
    return loaded(lambda own: open_pose_estimator(own, detector), path)
