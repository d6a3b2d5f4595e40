"""The losses, one number per sample in fp32: the mean inside that sample over what there is, 0 where there is
nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.data.dance_with_music.skeleton import CONFIDENT
from stagecoach.models.dance_with_music.diffusion import Noised
from stagecoach.models.dance_with_music.heatmaps import coordinates, gaussian_marginals, outer
from stagecoach.models.dance_with_music.loss_config import LossConfig


def pose_loss(output: Mapping[str, Tensor], xy: Tensor, conf: Tensor, tau: float, constants: LossConfig) -> Tensor:
    """``[B]``: cross-entropy of the heatmaps with Gaussians around the true points, and with their weights the L1 of
    the points, the L1 of how they move, and the cross-entropy of points being there.

    ``output`` is MusicToPose's; ``xy`` ``[B, T, 134, 2]`` divided by width and height, ``conf`` ``[B, T, 134]`` in
    0..1. A point counts by its confidence where that is above 0.3.
    """
    weight = point_weight(conf)
    found = coordinates(output, tau)
    both = torch.minimum(weight[:, 1:], weight[:, :-1])
    there = F.binary_cross_entropy_with_logits(output["conf"], conf.float(), reduction="none")
    return (
        weighted_mean(heat_error(output, xy, tau, constants.sigma), weight)
        + constants.coordinates * weighted_mean((found - xy).abs().mean(-1), weight)
        + constants.velocity * weighted_mean((found.diff(dim=1) - xy.diff(dim=1)).abs().mean(-1), both)
        + constants.confidence * there.flatten(1).mean(1)
    )


def heat_error(output: Mapping[str, Tensor], xy: Tensor, tau: float, sigma: float) -> Tensor:
    """``[B, T, 134]``: cross-entropy of each heatmap with the Gaussian around its true point; for factorised heatmaps
    the sum of that over columns and that over rows, which is the same number."""
    if "logits" in output:
        logits = output["logits"]
        target = outer(*gaussian_marginals(xy, logits.shape[-1], sigma))
        return -(target * (logits.flatten(-2) / tau).log_softmax(-1).view_as(target)).sum((-1, -2))
    target_x, target_y = gaussian_marginals(xy, output["logits_x"].shape[-1], sigma)
    return -(
        (target_x * (output["logits_x"] / tau).log_softmax(-1)).sum(-1)
        + (target_y * (output["logits_y"] / tau).log_softmax(-1)).sum(-1)
    )


def face_loss(face: Tensor, reference: Tensor, valid: Tensor) -> Tensor:
    """``[B]``: 1 - cosine of ``face`` and ``reference``, ``[B, 512]``; 0 where ``valid`` ``[B]`` is false."""
    return torch.where(valid, 1 - F.cosine_similarity(face.float(), reference.float(), dim=-1), 0.0)


def diffusion_loss(noised: Noised, prediction: Tensor, faces: Tensor, face_weight: float) -> Tensor:
    """``[B]``: weighted squared error in v, times ``face_weight`` where ``faces`` ``[B, T, h, w]`` is 1."""
    pixels = 1 + (face_weight - 1) * faces.unsqueeze(2)
    return noised.weight * (pixels * (prediction.float() - noised.v).square()).flatten(1).mean(1)


def latent_identity_loss(noised: Noised, estimate: Tensor, latents: Tensor, faces: Tensor, factor: float) -> Tensor:
    """``[B]``: ``factor`` times the squared error of the ``estimate`` of the ``latents`` over the pixels of faces,
    times the signal's part of the variance: of what the noise hides no face can be asked."""
    error = (estimate - latents.float()).square().mean(2)
    return factor * noised.signal * weighted_mean(error, faces)


def temporal_loss(noised: Noised, estimate: Tensor, latents: Tensor) -> Tensor:
    """``[B]``: how the ``estimate`` changes from frame to frame against how the ``latents`` do, times the signal's
    part of the variance: 0 for the right motion, not for none. 0 for one frame."""
    change = (estimate.diff(dim=1) - latents.float().diff(dim=1)).abs()
    return noised.signal * weighted_mean(change, torch.ones_like(change))


def point_weight(conf: Tensor) -> Tensor:
    """Confidence, 0 where a point counts as not found."""
    return torch.where(conf > CONFIDENT, conf.float(), 0.0)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """``[B]``: mean of ``values`` ``[B, ...]`` by ``weight`` of the same shape inside each sample; 0 where all weights
    are 0."""
    total = weight.flatten(1).sum(1)
    summed = (torch.where(weight > 0, values, 0.0) * weight).flatten(1).sum(1)
    return summed / torch.where(total > 0, total, 1.0)
