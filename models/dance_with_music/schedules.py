"""The guide's schedules as functions of where a run stands.

``step`` counts optimizer steps from 0; fractions are of the stage's ``total_steps``.
"""

from __future__ import annotations

import math

from stagecoach.models.dance_with_music.config import DanceConfig, FramesConfig, Phase
from stagecoach.models.dance_with_music.loss_config import ScheduleConfig
from stagecoach.models.family import Progress, has_started

EPOCHS_PER_FRAME = 10
"""Of the guide's growth: ``min(150, 24 + epoch // 10)``."""


def sampling_ratio(schedules: ScheduleConfig, phase: Phase, progress: Progress) -> float:
    """Part of the predicted pose in the guidance, the rest is the true pose.

    Stage B: ``min(1, (s - 0.8 N) / (0.2 N))`` for s > 0.8 N, 0 before. Later stages stay at what that reaches at its
    end. Guidance training has no prediction.
    """
    if phase in ("m2p", "guidance"):
        return 0.0
    total = progress.total_steps
    step = progress.step if phase == "image" else total
    begin, end = (part * total for part in schedules.sampling)
    if step <= begin:
        return 0.0
    return min(1.0, (step - begin) / (end - begin)) if end > begin else 1.0


def condition_scale(schedules: ScheduleConfig, phase: Phase, progress: Progress) -> float:
    """Factor on the guidance: ``min(1.5, 0.5 + s / (0.3 N))`` in stage B, its end in the stages after it, 1 in guidance
    training."""
    start, end = schedules.scale
    if phase == "guidance":
        return 1.0
    if phase != "image":
        return end
    part = progress.step / (schedules.ramp * progress.total_steps)
    return start + (end - start) * min(1.0, part)


def identity_scale(config: DanceConfig, phase: Phase, progress: Progress) -> float:
    """Factor on the identity adapters: linear from 0 in the first stage that has them, 1 after it and where published
    adapters were loaded."""
    part = config.schedules.identity
    if phase not in ("image", "guidance") or config.weights.identity_adapter is not None or part == 0:
        return 1.0
    return min(1.0, progress.step / (part * progress.total_steps))


def m2p_open(config: DanceConfig, phase: Phase, progress: Progress) -> bool:
    """Whether MusicToPose trains at this step, so that gradients may reach it from the denoiser."""
    if phase == "image":
        return has_started(config.schedules.unfreeze, progress.step, progress.total_steps)
    return phase in ("m2p", "joint") or (phase == "motion" and config.m2p_in_motion > 0)


def window_frames(frames: FramesConfig, grown: float, phase: Phase, step: int, total_steps: int, epoch: int) -> int:
    """Frames of the windows of a step."""
    if phase == "motion":
        return motion_frames(frames, grown, step, total_steps, epoch)
    return {"m2p": frames.m2p, "image": frames.image, "joint": frames.motion[1], "guidance": frames.guidance}[phase]


def motion_frames(frames: FramesConfig, grown: float, step: int, total_steps: int, epoch: int) -> int:
    """Stage C. Growth ``epoch``, the guide's: ``min(150, 24 + epoch // 10)``. Growth ``step``, which reaches the end:
    ``min(150, 24 + floor(126 s / (0.8 N)))``, rounded down to an even number."""
    first, last = frames.motion
    if frames.growth == "epoch":
        return min(last, first + epoch // EPOCHS_PER_FRAME)
    reached = min(last, first + math.floor((last - first) * step / (grown * total_steps)))
    return reached - reached % 2
