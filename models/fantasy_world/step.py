"""One training forward of FantasyWorld: sampling, prediction, losses."""

import torch
from torch import Tensor

from stagecoach.models.common.keyed import keyed_drop
from stagecoach.models.common.noise import FlowMatching, Noised
from stagecoach.models.common.reduce import masked_mean, sum_count
from stagecoach.models.family import Batch, Progress
from stagecoach.models.fantasy_world import losses
from stagecoach.models.fantasy_world.config import FantasyWorldConfig, LossConfig
from stagecoach.models.fantasy_world.heads.targets import Targets, draw_frames, make_targets

Result = dict[str, dict]


def training_step(network: torch.nn.Module, batch: Batch, progress: Progress) -> Result:
    """``{"losses": {name: fp32 [B]}, "metrics": {name: (sum, count)}}`` of one micro-batch.

    Stage 1 gives the losses depth, points and camera; stage 2 gives diffusion besides. Noise, sigma, the frames that
    the dense heads decode, and which samples go without text or camera are keyed by the sample; the same modules are
    called regardless of what was drawn. Outside of training (``progress.training`` False) no condition is withheld.
    """
    config: FantasyWorldConfig = network.config
    constants = config.losses
    latent = batch["latent"]
    process = make_process(constants)
    noised = process.noised(batch, latent, process.draw(batch, "sigma"), "noise")
    frames = draw_frames(batch, "frames", batch["depth"].shape[1], config.frames_per_step)
    camera_given = ~keyed_drop(batch, "camera_dropout", config.camera_dropout, progress.training)
    text_given = ~keyed_drop(batch, "text_dropout", config.text_dropout, progress.training)

    prediction = predict(network, batch, noised, camera_given, frames, text_given)
    targets = make_targets(batch, frames)
    terms = {
        "depth": losses.depth_loss(prediction["depth"], prediction["depth_confidence"], targets, constants),
        "points": losses.points_loss(prediction["points"], prediction["points_confidence"], targets, constants),
        "camera": losses.camera_loss(prediction["poses"], targets.poses, constants),
    }
    metrics = geometry_metrics(prediction, targets, camera_given)
    if "video" in prediction:
        error = noised.error(prediction["video"])
        terms["diffusion"] = error * noised.weight
        metrics["diffusion_loss"] = sum_count(error)
    return {"losses": terms, "metrics": metrics}


def make_process(constants: LossConfig) -> FlowMatching:
    """The flow matching of training and validation; the network takes timesteps in 0..1000."""
    return FlowMatching(constants.shift, grid=constants.sigma_grid, weighting=constants.diffusion_weighting)


def predict(
    network: torch.nn.Module,
    batch: Batch,
    noised: Noised,
    camera_given: Tensor,
    frames: Tensor,
    text_given: Tensor | None = None,
) -> dict[str, Tensor | list[Tensor]]:
    """What the network predicts of ``batch`` and its ``noised`` latents, given the ``conditions`` of the batch."""
    return network.predict(noised.x, noised.level, frames=frames, **conditions(batch, camera_given, text_given))


def conditions(batch: Batch, camera_given: Tensor, text_given: Tensor | None = None) -> dict[str, Tensor | None]:
    """What ``FantasyWorld.predict`` is given besides the latents. ``camera_given`` and ``text_given`` (None: all) are
    bool ``[B]``; withheld text is all zeros, as padding is."""
    text = batch["text"]
    if text_given is not None:
        text = text * text_given.to(text.dtype)[:, None, None]
    return {
        "text": text,
        "extrinsics": batch["extrinsics"],
        "intrinsics": batch["intrinsics"],
        "camera_given": camera_given,
        "image_latent": batch.get("image_latent"),
        "image_states": batch.get("clip"),
    }


@torch.no_grad()
def geometry_metrics(prediction: dict, targets: Targets, camera_given: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What is monitored: plain errors, unweighted and unfiltered, as means over samples.

    - ``depth_loss``: mean |d - g| over a sample's valid pixels; ``point_loss``: mean distance. Units of the scene
      scale.
    - ``camera_loss``: mean absolute error over the 9 numbers of the last refinement, and the same over the samples
      whose camera the network was given (``camera_loss_given``) and was not (``camera_loss_withheld``).
    - ``depth_confidence``, ``points_confidence``: means over all pixels; at least 1.
    """
    depth = masked_mean(losses.depth_error(prediction["depth"], targets), targets.valid)
    points = masked_mean(losses.points_error(prediction["points"], targets), targets.valid)
    camera = losses.pose_error(prediction["poses"][-1], targets.poses).abs().flatten(1).mean(1)
    seen = targets.valid.flatten(1).any(1)
    return {
        "depth_loss": sum_count(depth, seen),
        "point_loss": sum_count(points, seen),
        "camera_loss": sum_count(camera),
        "camera_loss_given": sum_count(camera, camera_given),
        "camera_loss_withheld": sum_count(camera, ~camera_given),
        "depth_confidence": sum_count(prediction["depth_confidence"].float().flatten(1).mean(1)),
        "points_confidence": sum_count(prediction["points_confidence"].float().flatten(1).mean(1)),
    }
