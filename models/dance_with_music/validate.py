"""Metrics over held-out clips, each next to what the best trivial prediction reaches."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.models.common.reduce import Measured, sum_count, total
from stagecoach.models.dance_with_music.clip import Clip
from stagecoach.models.dance_with_music.conditions import Conditions, Inputs, make_conditions, predict_poses, read_batch
from stagecoach.models.dance_with_music.losses import diffusion_loss, temporal_loss
from stagecoach.models.dance_with_music.metrics import decoded_metrics
from stagecoach.models.dance_with_music.sampler import make_process
from stagecoach.models.dance_with_music.step import pose_metrics, pose_terms
from stagecoach.models.family import Batch, Progress
from stagecoach.models.metrics.dance import beat_alignment, pose_error_px

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Noise levels at which the denoiser is measured: parts of the drawn timesteps or sigmas that are smaller."""
DECODED = 1
"""The one of them at which the estimate is decoded: much further up it is blurred."""


@torch.no_grad()
def validate(
    network: torch.nn.Module, batch: Batch, progress: Progress, statistics: Mapping[str, Any]
) -> dict[str, Measured]:
    """Sums and counts (fp32 scalars) by name, with noise fixed per sample and level, nothing withheld, the schedules
    as they stand.

    Where there is a MusicToPose, over the whole windows: ``val_pose_loss``, ``val_face_loss``, ``val_pose_error_px``,
    its baseline the better, sample by sample, of each point's mean over the training split and the window's first
    pose held; ``val_beat_alignment`` and that of the true poses, ``val_beat_alignment_true``.

    Where there is a denoiser, over fixed noise levels: ``val_diffusion_loss``, its baseline a prediction of zero; from
    stage C on ``val_temporal_loss``, its baseline a still picture. At one level the estimate is decoded, see
    ``metrics.decoded_metrics``.
    """
    inputs = read_batch(network, batch)
    metrics: dict[str, Measured] = {}
    output = predict_poses(network, batch, inputs, progress)
    if output is not None:
        metrics |= _poses(network, output, inputs, statistics)
    if network.phase != "m2p":
        conditions = make_conditions(network, batch, inputs, output, progress)
        metrics |= _denoising(network, batch, inputs, conditions, progress)
    return metrics


def _poses(
    network: torch.nn.Module, output: Mapping[str, Tensor], inputs: Inputs, statistics: Mapping[str, Any]
) -> dict[str, Measured]:
    clip = inputs.clip
    found = {f"val_{name}": value for name, value in pose_metrics(network, output, clip).items()}
    terms = pose_terms(network, output, inputs)
    rate = FRAME_RATE / network.config.frames.stride
    true = beat_alignment(clip.xy, clip.conf, clip.beat, *clip.picture, rate)
    return found | {
        "val_pose_loss": sum_count(terms["pose"]),
        "val_face_loss": sum_count(terms["face"], inputs.references.has_face),
        "val_beat_alignment_true": total(true),
        "val_pose_error_px_baseline": total(_pose_baseline(clip, statistics)),
    }


def _pose_baseline(clip: Clip, statistics: Mapping[str, Any]) -> Measured:
    """Per sample the smaller of the errors of the mean pose and of the first pose held."""
    count = torch.tensor(statistics["pose_count"], dtype=torch.float64)
    mean = torch.tensor(statistics["pose_sum"], dtype=torch.float64) / count.clamp_min(1)[:, None]
    guesses = (mean.to(clip.xy).expand_as(clip.xy), clip.xy[:, :1].expand_as(clip.xy))
    (first, counted), (second, _) = (pose_error_px(xy, clip.xy, clip.conf, *clip.picture) for xy in guesses)
    return torch.minimum(first, second), counted


def _denoising(
    network: torch.nn.Module, batch: Batch, inputs: Inputs, conditions: Conditions, progress: Progress
) -> dict[str, Measured]:
    config, clip, faces = network.config, inputs.target, inputs.target.faces
    seen: dict[str, Measured] = {}
    diffusion, zero, temporal, still = [], [], [], []
    process = make_process(config)
    for index, u in enumerate(QUANTILES):
        level = process.level_at(clip.latents.new_full((len(clip.latents),), u))
        noisy = process.noised(batch, clip.latents, level, f"val_noise/{index}")
        prediction = network.denoise(noisy.x, noisy.level, conditions)
        diffusion.append(diffusion_loss(noisy, prediction, faces, config.losses.face_mask))
        zero.append(diffusion_loss(noisy, torch.zeros_like(prediction), faces, config.losses.face_mask))
        estimate = noisy.estimate(prediction)
        temporal.append(temporal_loss(noisy, estimate, clip.latents))
        if index == DECODED:
            seen = decoded_metrics(progress.helpers, estimate, clip, inputs.references)
        still.append(temporal_loss(noisy, torch.zeros_like(prediction), clip.latents))
    metrics = {"val_diffusion_loss": diffusion, "val_diffusion_loss_baseline": zero}
    if network.phase != "image":
        metrics |= {"val_temporal_loss": temporal, "val_temporal_loss_baseline": still}
    return {name: sum_count(torch.cat(values)) for name, values in metrics.items()} | seen
