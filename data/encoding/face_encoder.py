"""ArcFace from a local .onnx file, on faces that are aligned by five points, as insightface does it.

Input: 112 x 112 RGB, (x - 127.5) / 127.5, as of the models exported from PyTorch (antelopev2's ``glintr100``,
buffalo_l's ``w600k_r50``). Models with this step inside, as early ones from MXNet, are not detected and would come
out wrong.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stagecoach.data.encoding.encoders import EncoderEntry, EncoderError
from stagecoach.data.encoding.onnx_file import OnnxFile, onnx_entry

SIZE = 112
FACE_DIM = 512
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where eyes, nose and corners of the mouth come to lie (insightface's ``arcface_dst``), in pixel indices."""
TOGETHER = 64
PURPOSE = "ArcFace (antelopev2's glintr100.onnx, say)"


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scale and shift [2, 3] that takes points [N, 2] nearest to others in the least-squares sense
    (S. Umeyama, 1991, without reflection): as complex numbers, target = a source + b. Raises ``ValueError`` where all
    source points are one."""
    x, y = source @ [1, 1j], target @ [1, 1j]
    middle = x - x.mean()
    spread = (np.abs(middle) ** 2).sum()
    if not spread > 0:
        raise ValueError(f"{len(source)} points at one position found, expected points of a face")
    a = (middle.conj() * (y - y.mean())).sum() / spread
    b = y.mean() - a * x.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align_face(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The face uint8 [112, 112, 3] of a picture uint8 [H, W, 3], by its five ``points`` [5, 2] in pixel indices (eyes,
    nose, mouth, the left in the picture first); bilinear, black outside of the picture."""
    forward = similarity(points, TEMPLATE)
    turn = np.linalg.inv(forward[:, :2])
    # Pillow maps the centre of output pixel (u, v), at (u + 1/2, v + 1/2), to the same coordinates of the input.
    shift = 0.5 - turn @ (forward[:, 2] + 0.5)
    matrix = (turn[0, 0], turn[0, 1], shift[0], turn[1, 0], turn[1, 1], shift[1])
    aligned = Image.fromarray(image).transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(aligned)


class FaceEncoder:
    """Raises ``EncoderError`` for a file that is not such a model."""

    def __init__(self, path: Path) -> None:
        self._model = OnnxFile(path, PURPOSE, "dance")
        shapes = [list(next(iter(given.values()))[1:]) for given in (self._model.inputs, self._model.outputs)]
        if shapes != [[3, SIZE, SIZE], [FACE_DIM]]:
            raise EncoderError(
                f"{path}: a model from {shapes[0]} to {shapes[1]} found, expected ArcFace's from "
                f"[3, {SIZE}, {SIZE}] to [{FACE_DIM}]"
            )

    def encode(self, faces: Sequence[np.ndarray]) -> np.ndarray:
        """Aligned faces uint8 [112, 112, 3] -> float32 [N, 512], not normalised."""
        out = [np.zeros((0, FACE_DIM), np.float32)]
        for start in range(0, len(faces), TOGETHER):
            batch = np.stack(faces[start : start + TOGETHER]).astype(np.float32).transpose(0, 3, 1, 2)
            out.append(self._model((batch - 127.5) / 127.5)[0])
        return np.concatenate(out).astype(np.float32)


def face_entry(path: Path) -> EncoderEntry:
    """What the manifest says of the model. Raises ``EncoderError`` for a missing file."""
    return onnx_entry(path, "ArcFace", PURPOSE)
