"""Metrics over held-out clips, next to those of the best trivial predictors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stagecoach.models.common.keyed import keyed_randn
from stagecoach.models.common.reduce import Measured, sum_count
from stagecoach.models.family import Batch, Progress
from stagecoach.models.fantasy_world import losses
from stagecoach.models.fantasy_world.heads.targets import Targets, all_frames, make_targets
from stagecoach.models.fantasy_world.sampler import read_geometry
from stagecoach.models.fantasy_world.step import conditions, make_process, predict

DIFFUSION_QUANTILES = (0.125, 0.375, 0.625, 0.875)
"""u of the sigmas at which the flow-matching loss is measured: the middles of four equally likely parts of training."""

Metrics = dict[str, Measured]


@torch.no_grad()
def validate(network: torch.nn.Module, batch: Batch, progress: Progress, statistics: Mapping[str, Any]) -> Metrics:
    """Sums and counts (fp32 scalars) by name, over all frames of ``batch``, with noise keyed by the sample.

    - ``val_depth_error`` (over valid pixels, mean |d - g|) and ``val_point_error`` (mean distance) at
      ``sampler.INFERENCE_SIGMA``, the camera given; with ``_withheld`` appended, the camera not given. Units of the
      scene scale.
    - ``val_camera_error``: mean absolute error over the 9 numbers of the pose encoding of all frames, the camera
      withheld; ``val_path_error``: over the 7 of the camera's path (translation in units of the scene scale, sign-safe
      quaternion); ``val_fov_error``: over the two fields of view, in radians, which are one number of the lens and of
      another size. With ``_given`` appended: where the camera was given.
    - ``val_depth_error_baseline``: the training mean of the depth for every pixel. ``val_camera_error_baseline`` and
      its two parts: the mean trajectory of the training split for every clip.
    - ``val_diffusion_loss``: unweighted flow-matching error at four fixed sigmas, where the network has a video output.

    Raises ``ValueError`` where the mean trajectory of ``statistics`` has not as many frames as the clips.
    """
    config = network.config
    count, total = batch["depth"].shape[:2]
    device = batch["uid"].device
    latent = batch["latent"]
    process = make_process(config.losses)
    noise = keyed_randn(batch, "val_noise", latent.shape[1:])
    frames = all_frames(batch, total)
    targets = make_targets(batch, frames)
    metrics = baselines(targets, statistics)
    given = torch.ones(count, dtype=torch.bool, device=device)
    for camera_given, dense_suffix, camera_suffix in ((given, "", "_given"), (~given, "_withheld", "")):
        prediction = read_geometry(network.predict, conditions(batch, camera_given), latent, noise, process, frames)
        depth = losses.depth_error(prediction["depth"], targets)
        points = losses.points_error(prediction["points"], targets)
        metrics[f"val_depth_error{dense_suffix}"] = sum_count(depth, targets.valid)
        metrics[f"val_point_error{dense_suffix}"] = sum_count(points, targets.valid)
        metrics |= _camera_metrics(prediction["poses"][-1], targets, camera_suffix)
    if "video" in prediction:
        errors = []
        for index, u in enumerate(DIFFUSION_QUANTILES):
            level = process.level_at(torch.full((count,), u, device=device))
            noised = process.noised(batch, latent, level, f"val_noise/{index}")
            errors.append(noised.error(predict(network, batch, noised, given, frames[:, :0])["video"]))
        metrics["val_diffusion_loss"] = sum_count(torch.cat(errors))
    return metrics


def baselines(targets: Targets, statistics: Mapping[str, Any]) -> Metrics:
    """What the training split's mean depth and mean trajectory reach on ``targets`` (whose frames are the whole
    clip)."""
    depth = statistics["depth_sum"] / max(statistics["depth_count"], 1)
    trajectory = targets.poses.new_tensor(statistics["camera_sum"]) / max(statistics["camera_count"], 1)
    if trajectory.shape != targets.poses.shape[1:]:
        raise ValueError(
            f"the training statistics hold a mean trajectory of {len(trajectory)} frames, expected the "
            f"{targets.poses.shape[1]} of the held-out clips; build both splits with one clip length"
        )
    return {
        "val_depth_error_baseline": sum_count((targets.depth - depth).abs(), targets.valid),
        **_camera_metrics(trajectory.expand_as(targets.poses), targets, "_baseline"),
    }


def _camera_metrics(poses: Tensor, targets: Targets, suffix: str) -> Metrics:
    error = losses.pose_error(poses, targets.poses)
    return {
        f"val_camera_error{suffix}": sum_count(error.abs()),
        f"val_path_error{suffix}": sum_count(error[..., :7].abs()),
        f"val_fov_error{suffix}": sum_count(error[..., 7:].abs()),
    }
