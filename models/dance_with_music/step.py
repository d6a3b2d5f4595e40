"""One training forward of DanceWithMusic: sampling, prediction, losses."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.models.common.noise import Noised
from stagecoach.models.common.reduce import Measured, sum_count, total
from stagecoach.models.dance_with_music.clip import Clip
from stagecoach.models.dance_with_music.conditions import Conditions, Inputs, make_conditions, predict_poses, read_batch
from stagecoach.models.dance_with_music.identity.faces import face_identity_loss
from stagecoach.models.dance_with_music.losses import (
    custom_loss,
    diffusion_loss,
    face_loss,
    latent_identity_loss,
    pose_loss,
    temporal_loss,
)
from stagecoach.models.dance_with_music.music_to_pose.heatmaps import coordinates
from stagecoach.models.dance_with_music.sampler import make_process
from stagecoach.models.family import Batch, Progress
from stagecoach.models.metrics.dance import beat_alignment, pose_error_px

Result = dict[str, dict]


def training_step(network: torch.nn.Module, batch: Batch, progress: Progress) -> Result:
    """``{"losses": {name: fp32 [B]}, "metrics": {name: (sum, count)}}`` of one micro-batch.

    Where there is a MusicToPose: ``pose`` and ``face``, over the whole windows; where there is a denoiser:
    ``diffusion``, ``id`` and ``temporal`` (0 for single frames), and ``custom`` where one is named. The same modules
    are called regardless of what was drawn and regardless of what was withheld.
    """
    inputs = read_batch(network, batch)
    terms: dict[str, Tensor] = {}
    metrics: dict[str, Measured] = {}
    output = predict_poses(network, batch, inputs, progress)
    if output is not None:
        terms |= pose_terms(network, output, inputs)
        metrics |= pose_metrics(network, output, inputs.clip)
    if network.phase != "m2p":
        process = make_process(network.config)
        noised = process.noised(batch, inputs.target.latents, process.draw(batch, "noise_level"), "noise")
        conditions = make_conditions(network, batch, inputs, output, progress)
        prediction = network.denoise(noised.x, noised.level, conditions)
        terms |= denoising_terms(network, batch, inputs, conditions, noised, prediction, progress)
        metrics["signal_mean"] = sum_count(noised.signal)
    return {"losses": terms, "metrics": metrics}


def pose_terms(network: torch.nn.Module, output: Mapping[str, Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """``pose`` and ``face``, fp32 ``[B]`` each, over the whole windows."""
    config, clip, references = network.config, inputs.clip, inputs.references
    return {
        "pose": pose_loss(output, clip.xy, clip.conf, config.m2p.temperature, config.losses),
        "face": face_loss(output["face"], references.face, references.has_face),
    }


@torch.no_grad()
def pose_metrics(network: torch.nn.Module, output: Mapping[str, Tensor], clip: Clip) -> dict[str, Measured]:
    """``pose_error_px`` of the points and ``beat_alignment`` of how they move."""
    xy, stride = coordinates(output, network.config.m2p.temperature), network.config.frames.stride
    alignment = beat_alignment(xy, output["conf"].sigmoid(), clip.beat, *clip.picture, FRAME_RATE / stride)
    return {
        "pose_error_px": total(pose_error_px(xy, clip.xy, clip.conf, *clip.picture)),
        "beat_alignment": total(alignment),
    }


def denoising_terms(
    network: torch.nn.Module,
    batch: Batch,
    inputs: Inputs,
    conditions: Conditions,
    noised: Noised,
    prediction: Tensor,
    progress: Progress,
) -> dict[str, Tensor]:
    """``diffusion``, ``id``, ``temporal`` and, where one is named, ``custom``, fp32 ``[B]`` each, over the target
    frames."""
    constants, clip = network.config.losses, inputs.target
    faces, estimate = clip.faces, noised.estimate(prediction)
    if constants.id_kind == "arcface":
        identity = face_identity_loss(
            progress.helpers, batch, noised, estimate, clip, inputs.references, constants.id_steps
        )
    else:
        identity = latent_identity_loss(noised, estimate, clip.latents, faces, constants.id_face)
    terms = {
        "diffusion": diffusion_loss(noised, prediction, faces, constants.face_mask),
        "id": identity,
        "temporal": temporal_loss(noised, estimate, clip.latents),
    }
    if constants.custom is not None:
        terms["custom"] = custom_loss(constants.custom)(prediction.float(), noised.target, conditions)
    return terms
