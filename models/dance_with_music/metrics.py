"""What is measured: points in pixels, faces as cosines, frames against the true ones.

Each function gives a sum and a count per sample, fp32 ``[B]`` each, so that means over ranks are means over what was
measured; ``total`` makes one entry of ``network(...)["metrics"]`` of them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stagecoach.data.dance_with_music.skeleton import CONFIDENT
from stagecoach.models.common.constants import constant
from stagecoach.models.common.reduce import Measured, sum_count_per_sample, total
from stagecoach.models.dance_with_music.clip import Clip, References
from stagecoach.models.dance_with_music.identity.faces import crop_faces


def pose_error_px(xy: Tensor, target: Tensor, conf: Tensor, height: int, width: int) -> Measured:
    """Distances in pixels of a picture of ``height x width`` between points ``xy`` and ``target``, ``[B, T, 134, 2]``
    divided by width and height, over those whose confidence ``conf`` ``[B, T, 134]`` is above 0.3."""
    size = constant((width, height), target.device)
    distance = ((xy.detach().float() - target.float()) * size).square().sum(-1).sqrt()
    return sum_count_per_sample(distance, conf > CONFIDENT)


def identity_cosine(embedder: nn.Module, frames: Tensor, clip: Clip, references: References) -> Measured:
    """Cosines (CSIM) of ArcFace's vectors of the faces in ``frames`` ``[B, n, 3, H, W]`` in -1..1 with the references'.
    Faces are where the true frames in ``clip`` have them (see ``crop_faces``); nothing is detected, so a frame without
    a face counts with what is there."""
    faces = crop_faces(frames, clip.face_box, clip.xy, clip.conf)
    vectors = embedder(faces.flatten(0, 1)).float().unflatten(0, faces.shape[:2])
    cosine = torch.cosine_similarity(vectors, references.face.float()[:, None], dim=-1)
    return sum_count_per_sample(cosine, clip.face_valid.bool() & references.has_face.bool()[:, None])


def psnr(frames: Tensor, truth: Tensor) -> Measured:
    """Peak signal-to-noise ratio in dB of frames ``[B, n, 3, H, W]`` in -1..1, frame by frame, in floats (an evaluator
    that rounds to bytes and overflows gives some 10 dB more)."""
    error = (frames.float().clamp(-1, 1) - truth.float().clamp(-1, 1)).square().mean((2, 3, 4)) / 4
    return sum_count_per_sample(-10 * error.clamp_min(1e-10).log10())


def motion(frames: Tensor, truth: Tensor) -> dict[str, Measured]:
    """How frames ``[B, n, 3, H, W]`` in -1..1 change from one to the next, in fractions of full brightness:
    ``motion_error``, mean |change - true change|, and ``motion_amount`` and ``motion_amount_true``, mean |change|: a
    still picture has a small error where little moves, so read them together. Counts are 0 for one frame."""
    change, true = (x.float().clamp(-1, 1).diff(dim=1) / 2 for x in (frames, truth))
    values = {"motion_error": change - true, "motion_amount": change, "motion_amount_true": true}
    return {name: sum_count_per_sample(value.abs().mean((2, 3, 4))) for name, value in values.items()}


MOST_FRAMES = 8
"""Neighbouring frames of each sample that are decoded."""


@torch.no_grad()
def decoded_metrics(
    helpers: Mapping[str, nn.Module], estimate: Tensor, clip: Clip, references: References
) -> dict[str, Measured]:
    """Sums and counts (fp32 scalars) of ``estimate`` ``[B, T, 4, h, w]``, scaled latents, against those in ``clip``,
    both as the VAE decodes them (the first ``MOST_FRAMES`` frames).

    ``val_psnr`` in dB; ``val_identity_cosine`` where there is an ArcFace, and ``val_identity_cosine_true``, what the
    true frames reach; for more than one frame ``val_motion_error``, ``val_motion_amount`` and
    ``val_motion_amount_true``, in fractions of full brightness.
    """
    vae, arcface = helpers["vae"], helpers.get("arcface")
    drawn, true = (vae(x[:, :MOST_FRAMES].flatten(0, 1)).unflatten(0, (len(x), -1)) for x in (estimate, clip.latents))
    found = {"psnr": psnr(drawn, true)}
    if drawn.shape[1] > 1:
        found |= motion(drawn, true)
    if arcface is not None:
        for name, frames in (("identity_cosine", drawn), ("identity_cosine_true", true)):
            found[name] = identity_cosine(arcface, frames, clip.first(MOST_FRAMES), references)
    return {f"val_{name}": total(value) for name, value in found.items()}
