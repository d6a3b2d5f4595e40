"""Dances: how near to the music's beats the dancer's slowest moments are, how a set of dances moves, and whether a
generated video shows the poses that were asked for.

The beat alignment score follows Bailando (arXiv 2203.13055, ``utils/beat_align_score.py``), on the 18 body points
instead of 24 joints in space, so that numbers are those of "2D-BAS" and stand in no table with the published ones.
There speed is smoothed with a Gaussian of 5 frames and distances are measured with one of 3 frames, both at 60 per
second; here both are as long in seconds, 2.5 and 1.5 frames at 30 per second. The kinetic features are those that
AIST++ (arXiv 2101.08779, section 5) takes, likewise in the picture's plane ("2D-FID_k", "2D-Div").
"""

import torch
from torch import Tensor

from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.data.dance_with_music.skeleton import BODY, CONFIDENT
from stagecoach.models.common.constants import constant
from stagecoach.models.common.reduce import Measured, sum_count_per_sample
from stagecoach.models.metrics.distribution import frechet_distance
from stagecoach.models.metrics.metric import Metric, Unavailable

POSE_ERROR = Metric("pose_error_px", "px")
BEAT_ALIGNMENT = Metric("beat_alignment", "0..1", True)
ESTIMATED = "poses estimated on the generated video"
METRICS = (
    POSE_ERROR,
    BEAT_ALIGNMENT,
    Metric("pose_following_px", "px", needs=ESTIMATED),
    Metric("pose_following_pck", "0..1", True, needs=ESTIMATED),
    Metric("fid_k_2d", needs="more dances than 54"),
    Metric("diversity_2d", "deviations of the true dances", None),
)
SMOOTHING, TOLERANCE = 5 / 60, 3 / 60
"""Seconds."""
_CUT = 4.0
"""Standard deviations at which the smoothing kernel ends, as scipy's does."""


def beat_alignment(
    xy: Tensor, conf: Tensor, beat: Tensor, height: int, width: int, rate: float = FRAME_RATE
) -> tuple[Tensor, Tensor]:
    """The score in 0..1 of each sample that has a beat, and whether it has one, fp32 ``[B]`` each.

    ``xy`` ``[B, T, 134, 2]`` divided by width and height, ``conf`` ``[B, T, 134]`` (a point counts in a speed where it
    was found in both frames), ``beat`` ``[B, T]``, not 0 at the frames of the music's beats, ``rate`` frames per
    second. Without any motion beat the score is 0.
    """
    moves = motion_beats(xy, conf, height, width, rate)
    frames = torch.arange(beat.shape[1], device=beat.device, dtype=torch.float32)
    distance = (frames[:, None] - frames[None, : moves.shape[1]]).square()  # [T, T - 1]
    nearest = torch.where(moves[:, None], distance, torch.inf).amin(-1)
    closeness = torch.exp(-nearest / (2 * (TOLERANCE * rate) ** 2))
    there = beat > 0
    count = there.sum(1)
    return torch.where(there, closeness, 0.0).sum(1) / count.clamp_min(1), (count > 0).float()


def motion_beats(xy: Tensor, conf: Tensor, height: int, width: int, rate: float = FRAME_RATE) -> Tensor:
    """bool ``[B, T - 1]``: the local minima of the smoothed mean speed of the body's points; entry k is the step from
    frame k to k + 1, which the published score counts as frame k."""
    size = constant((width, height), xy.device)
    points, sure = xy[:, :, BODY].float() * size, conf[:, :, BODY] > CONFIDENT
    both = sure[:, 1:] & sure[:, :-1]
    speed = torch.where(both, points.diff(dim=1).square().sum(-1).sqrt(), 0.0)
    mean = smooth(speed.sum(-1) / both.sum(-1).clamp_min(1), SMOOTHING * rate)
    low = mean.new_zeros(mean.shape, dtype=torch.bool)
    low[:, 1:-1] = (mean[:, 1:-1] < mean[:, :-2]) & (mean[:, 1:-1] < mean[:, 2:])
    return low


def smooth(values: Tensor, sigma: float) -> Tensor:
    """``[B, N]`` through a Gaussian; the ends are mirrored, as ``scipy.ndimage.gaussian_filter1d`` has it."""
    radius = int(_CUT * sigma + 0.5)
    steps = torch.arange(-radius, radius + 1, device=values.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    length = values.shape[1]
    index = (torch.arange(length, device=values.device)[:, None] + steps) % (2 * length)
    index = torch.minimum(index, 2 * length - 1 - index)
    return (values[:, index] * (kernel / kernel.sum())).sum(-1)


def pose_error_px(xy: Tensor, target: Tensor, conf: Tensor, height: int, width: int) -> Measured:
    """Distances in pixels of a picture of ``height x width`` between points ``xy`` and ``target``, ``[B, T, 134, 2]``
    divided by width and height, over those whose confidence ``conf`` ``[B, T, 134]`` is above 0.3."""
    return sum_count_per_sample(_distances(xy.detach(), target, height, width), conf > CONFIDENT)


def _distances(xy: Tensor, target: Tensor, height: int, width: int) -> Tensor:
    size = constant((width, height), target.device)
    return ((xy.float() - target.float()) * size).square().sum(-1).sqrt()


PCK_PART = 0.1


def pose_following(
    xy: Tensor, conf: Tensor, found: Tensor, found_conf: Tensor, height: int, width: int
) -> dict[str, Measured]:
    """The body points ``found`` on generated frames against those asked for, ``xy``, both ``[B, T, 134, 2]`` divided by
    width and height with confidences ``[B, T, 134]``.

    ``pose_following_px``: distances in pixels of the points that are in both. ``pose_following_pck``: the part of the
    points asked for that were found within a tenth of the longer side of the box around those of their frame (ours:
    PCK's usual length, of the head or the trunk, is often hidden in a dance); one not found is none.
    """
    asked, there = conf[:, :, BODY] > CONFIDENT, found_conf[:, :, BODY] > CONFIDENT
    distance = _distances(found[:, :, BODY], xy[:, :, BODY], height, width)
    points = xy[:, :, BODY].float() * constant((width, height), xy.device)
    high = torch.where(asked[..., None], points, -torch.inf).amax(2)
    low = torch.where(asked[..., None], points, torch.inf).amin(2)
    right = there & (distance <= PCK_PART * (high - low).amax(-1, keepdim=True))
    return {
        "pose_following_px": sum_count_per_sample(distance, asked & there),
        "pose_following_pck": sum_count_per_sample(right, asked),
    }


SECONDS = 20.0
"""The part of a dance from its start whose motion is compared."""
_NECK = 1


def kinetic_features(xy: Tensor, conf: Tensor, height: int, width: int, rate: float = FRAME_RATE) -> Tensor:
    """``[B, 54]`` of dances ``[B, T, 134, 2]``: per body point, seen from the neck, over its first 20 seconds, the mean
    squared speed across and up and the mean size of the acceleration, in picture heights and seconds. A point counts
    where it was found in the two or three frames in question, a point that never was has 0.

    Raises ``ValueError`` for dances of fewer than three frames.
    """
    if xy.shape[1] < 3:
        raise ValueError(f"a dance of {xy.shape[1]} frames found, expected at least three")
    most = round(SECONDS * rate)
    points = xy[:, :most, BODY].double() * constant((width / height, 1.0), xy.device)
    sure = conf[:, :most, BODY] > CONFIDENT
    points, sure = points - points[:, :, _NECK, None], sure & sure[:, :, _NECK, None]
    speed, moves = points.diff(dim=1) * rate, sure[:, 1:] & sure[:, :-1]
    change, turns = (speed.diff(dim=1) * rate).norm(dim=-1), moves[:, 1:] & moves[:, :-1]
    across, up = speed.square().unbind(-1)
    parts = [(across, moves), (up, moves), (change, turns)]
    means = [torch.where(m, v, 0.0).sum(1) / m.sum(1).clamp_min(1) for v, m in parts]
    return torch.cat(means, -1)


def kinetic_distance(features: Tensor, truth: Tensor, force: bool = False) -> float:
    """Of kinetic features ``[N, 54]`` of generated and ``[M, 54]`` of true dances, both less the mean of the true ones
    by their deviation: ``fid_k_2d``, the Fréchet distance. Raises ``Unavailable`` for fewer than 55 of either, unless
    forced."""
    return frechet_distance(*_scored(features, truth), force=force)


def diversity(features: Tensor, truth: Tensor) -> float:
    """``diversity_2d``: the mean distance between two of the generated dances, features as there. Neither good nor bad
    by itself: compare it with that of the true dances. Raises ``Unavailable`` for a single dance."""
    if len(features) < 2:
        raise Unavailable("one dance found, diversity is that between two")
    return torch.pdist(_scored(features, truth)[0]).mean().item()


def _scored(features: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    features, truth = features.double(), truth.double()
    deviation = truth.std(0, correction=0)
    deviation = torch.where(deviation > 1e-12, deviation, 1.0)
    return (features - truth.mean(0)) / deviation, (truth - truth.mean(0)) / deviation
