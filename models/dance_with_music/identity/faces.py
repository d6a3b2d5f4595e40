"""Faces cut out of pictures as ArcFace takes them, on the device and with gradients to the pixels, and the identity
loss on them."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.data.dance_with_music.skeleton import CONFIDENT, FACE
from stagecoach.data.encoding.face_encoder import SIZE, TEMPLATE
from stagecoach.models.common.constants import constant
from stagecoach.models.common.keyed import keyed_rand
from stagecoach.models.common.noise import Noised, signal_at
from stagecoach.models.dance_with_music.clip import Clip, References, take
from stagecoach.models.family import Batch

_FIVE = (tuple(range(36, 42)), tuple(range(42, 48)), (30,), (48,), (54,))
"""Of the face's 68 points: eyes, nose, corners of the mouth, as ``data.dance_with_music.skeleton.five_points``."""
RAISED = 0.12
"""By how much of its side a crop lies above its box. ArcFace's template has the eyes at 0.46 and the mouth at 0.82 of
the height; in a box from above the brows to below the chin they are about that much higher."""


def crop_faces(frames: Tensor, boxes: Tensor, xy: Tensor | None = None, conf: Tensor | None = None) -> Tensor:
    """``frames`` ``[B, n, 3, H, W]`` in -1..1 and face ``boxes`` ``[B, n, 4]`` (x0 y0 x1 y1 divided by width and
    height) -> fp32 ``[B, n, 3, 112, 112]`` in -1..1, bilinear, black outside of the picture.

    With points ``xy`` ``[B, n, 134, 2]`` (divided by width and height) and ``conf`` ``[B, n, 134]`` a face whose eyes,
    nose and mouth were found is aligned by them, as ``data.encoding.face_encoder.align_face`` aligns the references.
    Any other is the square around its box, upright, as large as the box's longer side; of an empty box it is
    meaningless, so mask it.
    """
    height, width = frames.shape[-2:]
    size = constant((width, height), frames.device)
    turn, shift = _from_boxes(boxes.float(), size)
    if xy is not None and conf is not None:
        five, sure = _five_points(xy.float() * size, conf)
        aligned = _from_points(five)
        turn, shift = (torch.where(sure[..., None], a, b) for a, b in zip(aligned, (turn, shift), strict=True))
    steps = torch.arange(SIZE, dtype=torch.float32, device=frames.device)
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    a, b = (turn[..., k, None, None] for k in range(2))
    # Pixel indices of the picture, then grid_sample's -1..1 from edge to edge.
    x = a * u - b * v + shift[..., 0, None, None]
    y = b * u + a * v + shift[..., 1, None, None]
    grid = (2 * torch.stack([x, y], -1) + 1) / size - 1
    brightness = F.grid_sample(frames.float().flatten(0, 1) + 1, grid.flatten(0, 1), align_corners=False)
    return brightness.unflatten(0, frames.shape[:2]) - 1


def _from_boxes(boxes: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Where the crop's pixels lie in the picture: pixel (u, v) at ``turn`` times it (as complex numbers) plus
    ``shift``, both ``[B, n, 2]``."""
    low, high = boxes[..., :2] * size, boxes[..., 2:] * size
    side = (high - low).amax(-1, keepdim=True).clamp_min(1)
    scale = side / SIZE
    raised = torch.cat([torch.zeros_like(side), RAISED * side], -1)
    corner = (low + high - side) / 2 - raised
    # Centres of pixels, not their edges, correspond.
    return torch.cat([scale, torch.zeros_like(scale)], -1), corner + (scale - 1) / 2


def _from_points(five: Tensor) -> tuple[Tensor, Tensor]:
    """The same for points ``[B, n, 5, 2]`` in pixel indices: the inverse of the least-squares similarity that takes
    them to the template (S. Umeyama, 1991, without reflection)."""
    target = constant(tuple(map(tuple, TEMPLATE.tolist())), five.device)
    x, y = five - five.mean(-2, keepdim=True), target - target.mean(0)
    spread = x.square().sum((-1, -2)).clamp_min(1e-6)
    real = (x * y).sum((-1, -2)) / spread
    imaginary = (x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]).sum(-1) / spread
    length = (real.square() + imaginary.square()).clamp_min(1e-12)
    a, b = real / length, -imaginary / length
    middle = target.mean(0)
    back = torch.stack([a * middle[0] - b * middle[1], b * middle[0] + a * middle[1]], -1)
    return torch.stack([a, b], -1), five.mean(-2) - back


def _five_points(pixels: Tensor, conf: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, n, 5, 2]`` of 134 points, and whether all of them were found, ``[B, n]``."""
    points, sure = pixels[..., FACE, :], conf[..., FACE]
    five = torch.stack([points[..., list(group), :].mean(-2) for group in _FIVE], -2)
    needed = [k for group in _FIVE for k in group]
    return five, sure[..., needed].amin(-1) >= CONFIDENT


def face_identity_loss(
    helpers: Mapping[str, nn.Module],
    batch: Batch,
    noised: Noised,
    estimate: Tensor,
    clip: Clip,
    references: References,
    id_steps: int,
) -> Tensor:
    """``[B]``: 1 - cosine of the reference's vector with that of the face in one frame of the ``estimate``, decoded.

    0 where no frame has a face, the reference has none, or the latents are noisier than the DDPM is at timestep
    ``id_steps``: the estimate is blurred then. The frame is one of those with a face, keyed by the sample.
    """
    frame, there = draw_face_frame(batch, clip)
    cosine = face_cosine(helpers, take(estimate, frame), clip.at(frame), references)
    asked = there & references.has_face & (noised.signal > signal_at(id_steps))
    return torch.where(asked, 1 - cosine, 0.0)


def face_cosine(helpers: Mapping[str, nn.Module], latents: Tensor, clip: Clip, references: References) -> Tensor:
    """``[B]``: cosine of the faces in scaled ``latents`` ``[B, 1, 4, h, w]`` of the one frame in ``clip`` with the
    references', by the decoder and ArcFace."""
    pictures = helpers["vae"](latents[:, 0])
    faces = crop_faces(pictures[:, None], clip.face_box, clip.xy, clip.conf)[:, 0]
    return F.cosine_similarity(helpers["arcface"](faces).float(), references.face, dim=-1)


def draw_face_frame(batch: Batch, clip: Clip) -> tuple[Tensor, Tensor]:
    """int64 ``[B, 1]``, a frame with a face, and whether there is any, bool ``[B]``."""
    valid = clip.face_valid.bool()
    order = keyed_rand(batch, "face_frame", valid.shape[1:]) + valid
    return order.argmax(dim=1, keepdim=True), valid.any(dim=1)
