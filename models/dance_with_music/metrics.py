"""What is measured: points in pixels, faces as cosines, frames against the true ones.

Each function gives a sum and a count per sample, fp32 ``[B]`` each, so that means over ranks are means over what was
measured; ``total`` makes one entry of ``network(...)["metrics"]`` of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stagecoach.data.dance_with_music.skeleton import CONFIDENT
from stagecoach.models.common.constants import constant
from stagecoach.models.dance_with_music.identity.faces import crop_faces

Measured = tuple[Tensor, Tensor]


def total(measured: Measured) -> Measured:
    """The same over the samples: fp32 scalars."""
    return measured[0].detach().float().sum(), measured[1].detach().float().sum()


def over(values: Tensor, mask: Tensor | None = None) -> Measured:
    """Sum and count inside each sample of ``values`` ``[B, ...]``, of those where ``mask`` (same shape) if given;
    what is outside has no influence, NaN included."""
    values = values.detach().float()
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    chosen = torch.where(mask, values, 0.0)
    return chosen.reshape(len(values), -1).sum(1), mask.reshape(len(values), -1).float().sum(1)


def pose_error_px(xy: Tensor, target: Tensor, conf: Tensor, height: int, width: int) -> Measured:
    """Distances in pixels of a picture of ``height x width`` between points ``xy`` and ``target``, ``[B, T, 134, 2]``
    divided by width and height, over those whose confidence ``conf`` ``[B, T, 134]`` is above 0.3."""
    size = constant((width, height), target.device)
    distance = ((xy.detach().float() - target.float()) * size).square().sum(-1).sqrt()
    return over(distance, conf > CONFIDENT)


def identity_cosine(
    embedder: nn.Module,
    frames: Tensor,
    boxes: Tensor,
    valid: Tensor,
    reference: Tensor,
    reference_valid: Tensor,
    xy: Tensor | None = None,
    conf: Tensor | None = None,
) -> Measured:
    """Cosines (CSIM) of ArcFace's vectors of the faces in ``frames`` ``[B, n, 3, H, W]`` in -1..1 with ``reference``
    ``[B, 512]``. Faces are where the true frames have them: ``boxes`` ``[B, n, 4]``, ``valid`` ``[B, n]``, and, where
    given, points (see ``crop_faces``); nothing is detected, so a frame without a face counts with what is there.
    ``reference_valid`` ``[B]``: whether the reference has a face."""
    faces = crop_faces(frames, boxes, xy, conf)
    vectors = embedder(faces.flatten(0, 1)).float().unflatten(0, faces.shape[:2])
    cosine = torch.cosine_similarity(vectors, reference.float()[:, None], dim=-1)
    return over(cosine, valid.bool() & reference_valid.bool()[:, None])


def psnr(frames: Tensor, truth: Tensor) -> Measured:
    """Peak signal-to-noise ratio in dB of frames ``[B, n, 3, H, W]`` in -1..1, frame by frame, in floats (an evaluator
    that rounds to bytes and overflows gives some 10 dB more)."""
    error = (frames.float().clamp(-1, 1) - truth.float().clamp(-1, 1)).square().mean((2, 3, 4)) / 4
    return over(-10 * error.clamp_min(1e-10).log10())


def motion(frames: Tensor, truth: Tensor) -> dict[str, Measured]:
    """How frames ``[B, n, 3, H, W]`` in -1..1 change from one to the next, in parts of full brightness:
    ``motion_error``, mean |change - true change|, and ``motion_amount`` and ``motion_amount_true``, mean |change|: a
    still picture has a small error where little moves, so read them together. Counts are 0 for one frame."""
    change, true = (x.float().clamp(-1, 1).diff(dim=1) / 2 for x in (frames, truth))
    values = {"motion_error": change - true, "motion_amount": change, "motion_amount_true": true}
    return {name: over(value.abs().mean((2, 3, 4))) for name, value in values.items()}
