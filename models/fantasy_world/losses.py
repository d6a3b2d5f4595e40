"""The losses of FantasyWorld, one number per sample.

``fantasy_world.md`` section 3 of the method's notes: [P] FantasyWorld (arXiv 2509.21657), [V] VGGT (arXiv 2503.11651
and its training code), [D] Video-Depth-Anything (arXiv 2501.12375). All of it is fp32 no matter what the network
computes in. Every mean is taken inside a sample over its valid pixels and is 0 where there is none, so a loss does
not depend on what else is in the batch.

What is monitored (``depth_error`` and the like) is kept apart from what is minimised: confidence weights and -log
terms may take a loss below 0, while depth_loss, point_loss and camera_loss are plain mean errors over all valid
pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stagecoach.models.common.reduce import masked_mean
from stagecoach.models.fantasy_world.config import LossConfig
from stagecoach.models.fantasy_world.heads.targets import Targets

_QUANTILE_PIXELS = 1 << 16
_SMALLEST = 1e-24
"""Square of a distance that counts as none; the clamp there makes the root's gradient at 0 be 0."""


def depth_loss(prediction: Tensor, confidence: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """``[B]``: alpha * temporal gradient matching + beta * the frame-wise loss without affine alignment [P].
    ``prediction`` and ``confidence`` are fp32 ``[B, K, H, W]``."""
    temporal = temporal_gradient_matching(prediction, targets, config)
    frame = dense_loss(prediction[..., None], targets.depth[..., None], confidence, targets.valid, config)
    return config.depth_temporal * temporal + config.depth_frame * frame


def points_loss(prediction: Tensor, confidence: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """``[B]`` of ``prediction`` fp32 ``[B, K, H, W, 3]`` and ``confidence`` ``[B, K, H, W]`` [P]."""
    return dense_loss(prediction, targets.points, confidence, targets.valid, config)


def dense_loss(prediction: Tensor, target: Tensor, confidence: Tensor, valid: Tensor, config: LossConfig) -> Tensor:
    """``[B]`` for maps ``[B, K, H, W, C]``, with e the norm of the error over C and c the confidence:

    mean(e) + gamma mean(c e) - alpha mean(log c) + gamma mean over scales of mean(c |gradient of the error|).

    The unweighted mean keeps a gradient where the confidence is low [V]; the gradient term is weighted as in [P]. c
    may not fall below 1, so -log c is at most 0 and bounded for a bounded error. Outliers of the labels are left out:
    of each sample's valid pixels the ``error_quantile`` with the smallest e count [V].
    """
    error = _norm(prediction - target, config)
    # NaN compares as no outlier: it has to show in the loss.
    outlier = error.detach() > _threshold(error.detach(), valid, config.error_quantile)
    kept = valid & ~outlier
    plain = masked_mean(error, kept)
    weighted = masked_mean(
        config.confidence_gamma * confidence * error - config.confidence_alpha * confidence.log(), kept
    )
    return plain + weighted + config.confidence_gamma * _gradient_error(prediction - target, confidence, kept, config)


def temporal_gradient_matching(prediction: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """``[B]``: mean |(d_{t+1} - d_t) - (g_{t+1} - g_t)| over pixels that are valid in both frames and whose true
    change is below ``temporal_change`` times the depth range of frame t (a larger one is an edge that moved) [D, Eq. 3
    as released: signed]. Pairs of the selection that are no neighbours in the clip count for nothing."""
    truth, valid = targets.depth, targets.valid
    change = truth[:, 1:] - truth[:, :-1]
    highest = torch.where(valid, truth, -torch.inf).amax((-2, -1))
    lowest = torch.where(valid, truth, torch.inf).amin((-2, -1))
    limit = config.temporal_change * (highest - lowest)[:, :-1, None, None]
    mask = valid[:, 1:] & valid[:, :-1] & (change.abs() < limit) & targets.adjacent[..., None, None]
    error = (prediction[:, 1:] - prediction[:, :-1] - change).abs().clamp_max(config.error_clamp)
    return masked_mean(error, mask)


def camera_loss(poses: Sequence[Tensor], target: Tensor, config: LossConfig) -> Tensor:
    """``[B]`` of the refinement iterations ``poses``, each fp32 ``[B, F, 9]``, against ``target`` ``[B, F, 9]``.

    Huber, scaled so that its slope is 1 in the linear part: smooth L1 with ``beta = huber_delta``. Iteration i of n
    weighs decay^(n-1-i) [V]; the weights are normalised to 1, so that the number of iterations does not change the
    loss's scale.
    """
    weights = [config.refinement_decay ** (len(poses) - 1 - i) for i in range(len(poses))]
    total = target.new_zeros(len(target))
    for weight, pose in zip(weights, poses, strict=True):
        error = pose_error(pose, target).abs()
        huber = torch.where(
            error < config.huber_delta, 0.5 * error.square() / config.huber_delta, error - 0.5 * config.huber_delta
        )
        translation, rotation, fov = (part.flatten(1).mean(1) for part in huber.split((3, 4, 2), -1))
        loss = config.translation_weight * translation + config.rotation_weight * rotation + config.fov_weight * fov
        total = total + weight / sum(weights) * loss
    return total


def pose_error(pose: Tensor, target: Tensor) -> Tensor:
    """``pose - target`` ``[..., 9]``, the target's quaternion taken with the sign that is nearer to the pose (q and -q
    are one rotation; without this the loss jumps where w passes 0)."""
    pose, target = pose.float(), target.float()
    translation, quaternion, fov = target.split((3, 4, 2), -1)
    same = (pose[..., 3:7].detach() * quaternion).sum(-1, keepdim=True) >= 0
    return pose - torch.cat([translation, torch.where(same, quaternion, -quaternion), fov], -1)


def depth_error(prediction: Tensor, targets: Targets) -> Tensor:
    """|d - g| ``[B, K, H, W]``, of meaning where ``targets.valid``."""
    return (prediction.float() - targets.depth).abs()


def points_error(prediction: Tensor, targets: Targets) -> Tensor:
    """Distance ``[B, K, H, W]`` of the points, of meaning where ``targets.valid``."""
    # torch.linalg.vector_norm takes ten times as long over a last dimension of three (CPU, PyTorch 2.13).
    return (prediction.float() - targets.points).square().sum(-1).sqrt()


def _norm(difference: Tensor, config: LossConfig) -> Tensor:
    """Norm over the last dimension, fp32, clamped. The gradient of the norm at 0 is 0."""
    difference = difference.float()
    if difference.shape[-1] == 1:
        return difference.abs()[..., 0].clamp_max(config.error_clamp)
    return difference.square().sum(-1).clamp(_SMALLEST, config.error_clamp**2).sqrt()


def _threshold(error: Tensor, valid: Tensor, quantile: float) -> Tensor:
    """The ``quantile`` of each sample's valid errors, ``[B, 1, ...]``, read from a regular subset of at most 65,536
    pixels. Infinite where the subset has no valid pixel.

    Only the largest errors are sorted: of n pixels at most n (1 - quantile) lie above the quantile of the valid ones.
    """
    shape = (len(error),) + (1,) * (error.ndim - 1)
    if quantile >= 1:
        return error.new_full(shape, torch.inf)
    flat = torch.where(valid, error, -torch.inf).flatten(1)
    stride = -(-flat.shape[1] // _QUANTILE_PIXELS) | 1  # odd: an even stride meets the same columns in every row
    flat, count = flat[:, ::stride], valid.flatten(1)[:, ::stride].sum(1)
    pixels = flat.shape[1]
    # One more for the threshold itself, and one for the rounding of fp32 products.
    largest = flat.topk(min(pixels, int(pixels * (1 - quantile)) + 2), dim=1).values
    above = count - (count * quantile).ceil().long().clamp_min(1)
    threshold = largest.gather(1, above.clamp_min(0)[:, None])
    return threshold.masked_fill((count == 0)[:, None], torch.inf).view(shape)


def _gradient_error(difference: Tensor, confidence: Tensor, mask: Tensor, config: LossConfig) -> Tensor:
    """``[B]``: mean over strides 1, 2, 4, ... of the mean of c |error(x + 1) - error(x)| along both image axes [V,
    P]."""
    total = difference.new_zeros(len(difference), dtype=torch.float32)
    for scale in range(config.gradient_scales):
        step = slice(None, None, 2**scale)
        d, c, m = difference[:, :, step, step], confidence[:, :, step, step], mask[:, :, step, step]
        sums, counts = 0.0, 0.0
        for after, before in (
            ((..., slice(1, None)), (..., slice(None, -1))),
            ((..., slice(1, None), slice(None)), (..., slice(None, -1), slice(None))),
        ):
            both = m[after] & m[before]
            slope = _norm(d[(*after, slice(None))] - d[(*before, slice(None))], config)
            weighted = slope * (c[after] + c[before]) / 2
            sums = sums + torch.where(both, weighted, 0.0).flatten(1).sum(1)
            counts = counts + both.flatten(1).sum(1)
        total = total + sums / counts.clamp_min(1)
    return total / config.gradient_scales
