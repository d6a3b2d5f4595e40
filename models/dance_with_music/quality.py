"""What a decoded estimate looks like beside the true frames: sharpness, motion, identity."""

from __future__ import annotations

import torch
from torch import Tensor

from stagecoach.models.dance_with_music.clip import Clip, References
from stagecoach.models.dance_with_music.metrics import Measured, identity_cosine, motion, psnr, total

MOST_FRAMES = 8
"""Neighbouring frames of each sample that are decoded."""


@torch.no_grad()
def decoded_metrics(
    network: torch.nn.Module, estimate: Tensor, clip: Clip, references: References
) -> dict[str, Measured]:
    """Sums and counts (fp32 scalars) of ``estimate`` ``[B, T, 4, h, w]``, scaled latents, against those in ``clip``,
    both as the VAE decodes them (the first ``MOST_FRAMES`` frames).

    ``val_psnr`` in dB; ``val_identity_cosine`` where there is an ArcFace, and ``val_identity_cosine_true``, what the
    true frames reach; for more than one frame ``val_motion_error``, ``val_motion_amount`` and
    ``val_motion_amount_true``, in parts of full brightness.
    """
    helpers = network.helpers.on(estimate.device)
    drawn, true = (
        helpers.vae(x[:, :MOST_FRAMES].flatten(0, 1)).unflatten(0, (len(x), -1)) for x in (estimate, clip.latents)
    )
    found = {"psnr": psnr(drawn, true)}
    if drawn.shape[1] > 1:
        found |= motion(drawn, true)
    if helpers.arcface is not None:
        boxes, valid, xy, conf = (x[:, :MOST_FRAMES] for x in (clip.face_box, clip.face_valid, clip.xy, clip.conf))
        for name, frames in (("identity_cosine", drawn), ("identity_cosine_true", true)):
            found[name] = identity_cosine(
                helpers.arcface, frames, boxes, valid, references.face, references.has_face, xy, conf
            )
    return {f"val_{name}": total(value) for name, value in found.items()}
