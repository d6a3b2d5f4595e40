"""What the denoiser is given: references, CLIP's embeddings, the face and the guidance, with what is withheld."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stagecoach.models.common.keyed import keyed_drop, keyed_randn
from stagecoach.models.dance_with_music.clip import Clip, References, read_clip, read_references, take, target_frames
from stagecoach.models.dance_with_music.config import DanceConfig
from stagecoach.models.dance_with_music.guidance.types import GuidanceInput, guidance_type
from stagecoach.models.dance_with_music.music_to_pose.heatmaps import coordinates
from stagecoach.models.dance_with_music.stages import condition_scale, identity_scale, m2p_open, sampling_ratio
from stagecoach.models.family import Batch, Progress

Conditions = dict[str, Any]
"""- ``references`` fp32 ``[B, R, 4, h, w]``, scaled latents; ``reference_given`` bool ``[B]``
- ``embedding`` ``[B, R, D]``, CLIP's of the references, in the network's dtype; ``embedding_given`` bool ``[B]``
- ``face`` fp32 ``[B, 512]``, ArcFace's vector at its length; ``face_given`` bool ``[B]``
- ``guidance`` by type, as it was rendered; ``guidance_given`` bool ``[B]``; ``condition_scale`` float
- ``identity_scale`` float, factor on the identity adapters"""


@dataclass(frozen=True)
class Inputs:
    """A micro-batch: ``clip``, the whole windows; ``target``, the frames that are denoised, at ``frames`` int64
    ``[B, K]`` of the windows (None: all of them); the references."""

    clip: Clip
    target: Clip
    references: References
    frames: Tensor | None


def read_batch(network: nn.Module, batch: Batch) -> Inputs:
    """What a step reads of ``batch``; in stage B a few frames of each window are denoised."""
    clip, references = read_clip(batch), read_references(batch, network.config)
    if network.phase != "image":
        return Inputs(clip, clip, references, None)
    frames = target_frames(batch, network.config)
    return Inputs(clip, clip.at(frames), references, frames)


def predict_poses(network: nn.Module, batch: Batch, inputs: Inputs, progress: Progress) -> dict[str, Tensor] | None:
    """MusicToPose's output over the whole windows, with a graph where the stage ever trains it; None where there is no
    MusicToPose."""
    if network.phase == "guidance":
        return None
    clip, references = inputs.clip, inputs.references
    draws = {"uid": batch["uid"], "rng_key": batch["rng_key"]} if progress.training else None
    trains = network.phase != "motion" or network.config.m2p_in_motion > 0
    with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
        return network.m2p(clip.music, references.embedding[:, 0].to(network.dtype), clip.start_pose, draws)


def make_conditions(
    network: nn.Module, batch: Batch, inputs: Inputs, output: Mapping[str, Tensor] | None, progress: Progress
) -> Conditions:
    """Of the frames that are denoised, from MusicToPose's ``output`` over the whole windows. In training each kind of
    condition is withheld from a sample with its probability, keyed by the sample; never in validation."""
    references = inputs.references
    output = None if output is None else at_frames(output, inputs.frames)
    config: DanceConfig = network.config
    own, phase = config.diffusion, network.phase
    if output is not None and not m2p_open(config, phase, progress):
        output = {name: value.detach() for name, value in output.items()}
    ratio = sampling_ratio(config.schedules, phase, progress)
    reference, start = references.latents, own.drop_embedding / 2 if own.dropping == "ranges" else 0.0
    if config.backbone == "svd" and own.reference_noise_on == "latents" and progress.training:
        reference = reference + own.reference_noise * keyed_randn(batch, "reference_noise", reference.shape[1:])
    return {
        "references": reference,
        "reference_given": _given(batch, own.drop_reference, progress, start),
        "embedding": references.embedding.to(network.dtype),
        "embedding_given": _given(batch, own.drop_embedding, progress),
        "face": _face(config, references, output, ratio),
        "face_given": references.has_face & _given(batch, own.drop_face, progress),
        "guidance": guidance(config, inputs.target, output, ratio),
        "guidance_given": _given(batch, own.drop_guidance, progress),
        "condition_scale": condition_scale(config.schedules, phase, progress),
        "identity_scale": identity_scale(config, phase, progress),
    }


def guidance(config: DanceConfig, clip: Clip, output: Mapping[str, Tensor] | None, ratio: float) -> dict[str, Tensor]:
    """Each type's condition: ``ratio`` times that of the prediction and the rest of the true pose's."""
    true = GuidanceInput(clip.xy, clip.conf, None, clip.music, *clip.picture, clip.music_map)
    found = {}
    for name in config.guidance.types:
        kind = guidance_type(name)
        mixed = ratio if kind.from_pose and output is not None else 0.0
        if mixed == 0:
            found[name] = kind.render(true, config)
            continue
        predicted = replace(
            true, xy=coordinates(output, config.m2p.temperature), conf=output["conf"].sigmoid(), logits=output
        )
        found[name] = kind.render(predicted, config)
        if mixed < 1:
            found[name] = mixed * found[name] + (1 - mixed) * kind.render(true, config)
    return found


def at_frames(output: Mapping[str, Tensor], frames: Tensor | None) -> dict[str, Tensor]:
    """MusicToPose's output at ``frames`` ``[B, K]`` of each sample, all of them where None."""
    if frames is None:
        return dict(output)
    return {name: value if name == "face" else take(value, frames) for name, value in output.items()}


def _given(batch: Batch, probability: float, progress: Progress, start: float = 0.0) -> Tensor:
    """bool ``[B]``, false with ``probability`` in training. One draw decides on all kinds, by whether it lies in
    ``probability`` from ``start`` on: what classifier-free guidance compares with is a sample without any, and
    independent draws would hardly ever show one."""
    below = keyed_drop(batch, "drop", start + probability, progress.training)
    return ~below | keyed_drop(batch, "drop", start, progress.training)


def _face(config: DanceConfig, references: References, output: Mapping[str, Tensor] | None, ratio: float) -> Tensor:
    face = references.face
    if config.face.source == "m2p" and output is not None and ratio > 0:
        face = ratio * output["face"] + (1 - ratio) * face
    return face * references.length[:, None]
