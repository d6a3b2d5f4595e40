"""Identity where it is seen: ArcFace's vector of a face in a decoded frame against the reference's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.models.common.keyed import keyed_rand
from stagecoach.models.dance_with_music.clip import Clip, References, take
from stagecoach.models.dance_with_music.diffusion import Noised, late_signal
from stagecoach.models.dance_with_music.identity.faces import crop_faces
from stagecoach.models.family import Batch


def face_identity_loss(
    network: torch.nn.Module, batch: Batch, noised: Noised, estimate: Tensor, clip: Clip, references: References
) -> Tensor:
    """``[B]``: 1 - cosine of the reference's vector with that of the face in one frame of the ``estimate``, decoded.

    0 where no frame has a face, the reference has none, or the latents are noisier than the DDPM is at timestep
    ``losses.id_steps``: the estimate is blurred then. The frame is one of those with a face, keyed by the sample.
    """
    frame, there = draw_face_frame(batch, clip)
    cosine = face_cosine(network, take(estimate, frame), clip.at(frame), references)
    asked = there & references.has_face & (noised.signal > late_signal(network.config.losses.id_steps))
    return torch.where(asked, 1 - cosine, 0.0)


def face_cosine(network: torch.nn.Module, latents: Tensor, clip: Clip, references: References) -> Tensor:
    """``[B]``: cosine of the faces in scaled ``latents`` ``[B, 1, 4, h, w]`` of the one frame in ``clip`` with the
    references', by the decoder and the ArcFace beside the network."""
    helpers = network.helpers.on(latents.device)
    pictures = helpers.vae(latents[:, 0])
    faces = crop_faces(pictures[:, None], clip.face_box, clip.xy, clip.conf)[:, 0]
    return F.cosine_similarity(helpers.arcface(faces).float(), references.face, dim=-1)


def draw_face_frame(batch: Batch, clip: Clip) -> tuple[Tensor, Tensor]:
    """int64 ``[B, 1]``, a frame with a face, and whether there is any, bool ``[B]``."""
    valid = clip.face_valid.bool()
    order = keyed_rand(batch, "face_frame", valid.shape[1:]) + valid
    return order.argmax(dim=1, keepdim=True), valid.any(dim=1)
