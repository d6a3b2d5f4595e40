"""Whether a face is that of the reference, on faces that were detected on the generated pictures.

Validation's ``val_identity_cosine`` looks where the *true* frames have their faces: another number.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.data.dance_with_music.skeleton import five_points
from stagecoach.models.common.reduce import Measured
from stagecoach.models.metrics.metric import Metric

if TYPE_CHECKING:
    from stagecoach.data.encoding.face_encoder import FaceEncoder

NEEDED = "ArcFace's .onnx file; faces detected on the generated frames"
METRICS = (
    Metric("face_similarity", "cosine", True, needs=NEEDED),
    Metric("face_detection_rate", "0..1", True, needs="faces detected on the generated frames"),
    Metric("face_recall", "cosine x 100", True, needs=NEEDED),
)


def face_similarity(reference: Tensor, faces: Sequence[Tensor]) -> Measured:
    """Sum over the frames with a face of the largest cosine of ArcFace's vectors of their faces, ``[n, 512]`` for each
    frame, with the reference's, ``[512]`` (CSIM); and the number of these frames. Read it with
    ``face_detection_rate``: frames whose faces nobody would find are not in it."""
    best = [_best(found, reference) for found in faces if len(found)]
    return torch.stack(best).sum() if best else torch.zeros(()), torch.tensor(float(len(best)))


def face_detection_rate(faces: Sequence[Tensor]) -> Measured:
    """Frames with a face, and frames."""
    return torch.tensor(float(sum(len(found) > 0 for found in faces))), torch.tensor(float(len(faces)))


def face_recall(references: Tensor, faces: Tensor) -> Measured:
    """Sum over the reference faces ``[R, 512]`` of the largest cosine x 100 with any face of the picture ``[n, 512]``,
    0 where it has none (XVerse, arXiv 2506.21416, its ID score); and their number."""
    best = [_best(faces, reference) if len(faces) else torch.zeros(()) for reference in references]
    return 100 * torch.stack(best).sum() if best else torch.zeros(()), torch.tensor(float(len(best)))


def pose_faces(xy: np.ndarray, conf: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """The five points ``[5, 2]``, in pixels, of the face of a pose that was estimated on a generated frame
    (``[134, 2]`` divided by width and height, ``[134]``); none where it was not found."""
    points = five_points(xy, conf)
    return [] if points is None else [points * [width, height]]


def face_vectors(encoder: "FaceEncoder", picture: np.ndarray, faces: Sequence[np.ndarray]) -> Tensor:
    """ArcFace's vectors fp32 ``[n, 512]`` of the faces of a picture uint8 ``[H, W, 3]``, each by five points
    ``[5, 2]`` in pixels of any detector."""
    from stagecoach.data.encoding.face_encoder import align_face

    return torch.from_numpy(encoder.encode([align_face(picture, points) for points in faces]))


def _best(faces: Tensor, reference: Tensor) -> Tensor:
    return F.cosine_similarity(faces.float(), reference.float()[None]).max()
