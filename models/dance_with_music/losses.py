"""The losses, one number per sample in fp32: the mean inside that sample over what there is, 0 where there is
nothing."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.data.dance_with_music.skeleton import CONFIDENT
from stagecoach.models.common.noise import Noised
from stagecoach.models.common.reduce import weighted_mean
from stagecoach.models.dance_with_music.config import LossConfig
from stagecoach.models.dance_with_music.music_to_pose.heatmaps import coordinates, gaussian_marginals, outer


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
    return noised.weight * (pixels * (prediction.float() - noised.target).square()).flatten(1).mean(1)


def latent_identity_loss(noised: Noised, estimate: Tensor, latents: Tensor, faces: Tensor, factor: float) -> Tensor:
    """``[B]``: ``factor`` times the squared error of the ``estimate`` of the ``latents`` over the pixels of faces,
    times the signal's share of the variance: of what the noise hides no face can be asked."""
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


CustomLoss = Callable[[Tensor, Tensor, dict], Tensor]
"""``(prediction, target, conditions) -> [B]``: the denoiser's output and what it should be, fp32 ``[B, T, 4, h, w]``
each, and the conditions that it had (``conditions.Conditions``); one number per sample, fp32."""

CUSTOM_LOSSES: dict[str, CustomLoss] = {}


def register_custom_loss(name: str, loss: CustomLoss) -> None:
    """Make ``name`` a word for ``losses.custom``::

        def keep_still(prediction, target, conditions):  # [B]
            return (prediction.diff(dim=1) - target.diff(dim=1)).square().flatten(1).mean(1)

        register_custom_loss("keep_still", keep_still)

    in a script that then calls ``trainer.run.main``, and ``losses: {custom: keep_still, custom_weight: 0.1}`` in the
    recipe. It is in every stage with a denoiser, logged as ``loss/custom`` and ``custom_loss``. Raises ``ValueError``
    where the name is taken.
    """
    if name in CUSTOM_LOSSES:
        raise ValueError(f"custom loss {name!r} exists already, expected a new name")
    CUSTOM_LOSSES[name] = loss


def custom_loss(name: str) -> CustomLoss:
    """Raises ``ValueError`` for an unknown one."""
    if name not in CUSTOM_LOSSES:
        raise ValueError(
            f"losses.custom is {name!r}, expected among {sorted(CUSTOM_LOSSES)}; register_custom_loss adds one"
        )
    return CUSTOM_LOSSES[name]
