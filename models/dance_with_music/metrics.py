"""What is measured on decoded frames: faces as cosines, frames against the true ones."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stagecoach.models.common.reduce import Measured, sum_count_per_sample, total
from stagecoach.models.dance_with_music.clip import Clip, References
from stagecoach.models.dance_with_music.identity.faces import crop_faces
from stagecoach.models.metrics.pictures import psnr
from stagecoach.models.metrics.temporal import motion


def identity_cosine(embedder: nn.Module, frames: Tensor, clip: Clip, references: References) -> Measured:
    """Cosines (CSIM) of ArcFace's vectors of the faces in ``frames`` ``[B, n, 3, H, W]`` in -1..1 with the references'.
    Faces are where the true frames in ``clip`` have them (see ``crop_faces``); nothing is detected, so a frame without
    a face counts with what is there."""
    faces = crop_faces(frames, clip.face_box, clip.xy, clip.conf)
    vectors = embedder(faces.flatten(0, 1)).float().unflatten(0, faces.shape[:2])
    cosine = torch.cosine_similarity(vectors, references.face.float()[:, None], dim=-1)
    return sum_count_per_sample(cosine, clip.face_valid.bool() & references.has_face.bool()[:, None])


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
    found = {"psnr": psnr(drawn, true, -1, 1)}
    if drawn.shape[1] > 1:
        found |= motion(drawn, true, -1, 1)
    if arcface is not None:
        for name, frames in (("identity_cosine", drawn), ("identity_cosine_true", true)):
            found[name] = identity_cosine(arcface, frames, clip.first(MOST_FRAMES), references)
    return {f"val_{name}": total(value) for name, value in found.items()}
