"""Beat alignment score: how near to the music's beats the dancer's slowest moments are.

After Bailando (arXiv 2203.13055, ``utils/beat_align_score.py``), on the 18 body points instead of 24 joints in space,
so that numbers are those of "2D-BAS" and stand in no table with the published ones. There speed is smoothed with a
Gaussian of 5 frames and distances are measured with one of 3 frames, both at 60 per second; here both are as long in
seconds, 2.5 and 1.5 frames at 30 per second.
"""

import torch
from torch import Tensor

from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.data.dance_with_music.skeleton import BODY, CONFIDENT
from stagecoach.models.common.constants import constant

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
