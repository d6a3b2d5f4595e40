"""The stages: which modules train, for which losses, and the guide's schedules as functions of ``Progress``.

The freeze matrix (x trains, m at MusicToPose's low rate and late, (m) at the rate that ``m2p_in_motion`` says, - is not
built, the rest is frozen):

    module                                    A     B     C    joint   guidance
    m2p                                       x     m    (m)     m        -
    guidance, face_tokens                     -     x            x        x
    denoising_unet, champ                     -     x            x        x
      *.attn2.processor (identity)            -     x            x        x
      *.motion_modules                        -     -     x      x        x
    denoising_unet, svd: attentions, identity -     x            x        x
      temporal set                            -     1     x      x        1
    reference_unet but its last up block      -     x            x        x     (champ)

1: the temporal attentions among the attentions. VAE, CLIP and ArcFace are no part of the network. What earlier stages
trained is there in later ones and in their adapters.
"""

import math

from stagecoach.models.dance_with_music.champ.reference import reference_patterns
from stagecoach.models.dance_with_music.champ.unet import ONE_KEY as CHAMP_ONE_KEY
from stagecoach.models.dance_with_music.config import DanceConfig, FramesConfig, Phase, ScheduleConfig
from stagecoach.models.dance_with_music.svd.unet import ATTENTIONS, ONE_KEY, TEMPORAL
from stagecoach.models.family import (
    AllowNoGradient,
    LossTerm,
    Metric,
    Progress,
    Schedule,
    StageSpec,
    Trainable,
    has_started,
    loss_terms,
    trainables,
)
from stagecoach.models.metrics.dance import BEAT_ALIGNMENT, POSE_ERROR
from stagecoach.models.metrics.pictures import PSNR
from stagecoach.models.metrics.temporal import MOTION_AMOUNT, MOTION_AMOUNT_TRUE, MOTION_ERROR

METRICS = (
    POSE_ERROR,
    BEAT_ALIGNMENT,
    Metric("signal_mean", higher_is_better=None),
    POSE_ERROR.held_out(baseline=True),
    BEAT_ALIGNMENT.held_out(),
    *(Metric(name) for name in ("val_pose_loss", "val_face_loss")),
    *(Metric(f"val_{name}_loss", "", False, f"val_{name}_loss_baseline") for name in ("diffusion", "temporal")),
    PSNR.held_out(),
    Metric("val_identity_cosine", "cosine", True),
    *(metric.held_out() for metric in (MOTION_ERROR, MOTION_AMOUNT, MOTION_AMOUNT_TRUE)),
    *(Metric(f"val_{name}_true", higher_is_better=None) for name in ("beat_alignment", "identity_cosine")),
)

NAMES: dict[Phase, str] = {
    "m2p": "music_to_pose",
    "image": "image",
    "motion": "motion",
    "joint": "joint",
    "guidance": "guidance",
}

SPATIAL = tuple(
    f"denoising_unet.{part}"
    for part in (
        "conv_in",
        "time_embedding",
        "down_blocks.*.resnets",
        "down_blocks.*.attentions",
        "down_blocks.*.downsamplers",
        "mid_block.resnets",
        "mid_block.attentions",
        "up_blocks.*.resnets",
        "up_blocks.*.attentions",
        "up_blocks.*.upsamplers",
        "conv_norm_out",
        "conv_out",
    )
)
"""All of champ's denoiser but its motion modules, which are not there yet when B trains it."""
MOTION = tuple(f"denoising_unet.{block}.motion_modules" for block in ("down_blocks.*", "up_blocks.*", "mid_block"))
ONE_TOKEN = "CLIP's embedding is one token, and a softmax over one key is 1 regardless of the query"

LATE_M2P = AllowNoGradient("m2p.*", "MusicToPose's losses have weight 0 until it opens (schedules.unfreeze)")
BEHIND_ZERO = AllowNoGradient(
    "*.processor.id_to_*",
    "the face tokens that the identity adapters read are zero at first, and fade in (schedules.identity)",
)
FADED = AllowNoGradient("face_tokens.*", "what reads the face tokens fades in from 0 (schedules.identity)")


def make_stages(config: DanceConfig) -> tuple[StageSpec, ...]:
    """Of the config's plan: A, B, C, and ``joint`` where it is asked for; or guidance training alone."""
    phases: tuple[Phase, ...] = ("guidance",)
    if config.plan == "stages":
        phases = ("m2p", "image", "motion", "joint") if config.joint else ("m2p", "image", "motion")
    return tuple(
        StageSpec(
            index,
            NAMES[phase],
            _trainable(config, phase),
            _losses(config, phase),
            allow_no_gradient=_allowed_without_gradient(config, phase),
        )
        for index, phase in enumerate(phases, 1)
    )


def _trainable(config: DanceConfig, phase: Phase) -> tuple[Trainable, ...]:
    if phase == "m2p":
        return trainables(["m2p"])
    if phase == "motion":
        late = trainables(["m2p"], config.m2p_in_motion) if config.m2p_in_motion > 0 else ()
        return late + trainables(_motion(config))
    own = trainables(["guidance", "face_tokens"])
    if phase in ("image", "joint"):
        start_fraction = config.schedules.unfreeze if phase == "image" else 0.0
        own = trainables(["m2p"], config.schedules.m2p_rate, start_fraction) + own
    if config.backbone == "svd":
        return own + trainables(ATTENTIONS if phase != "joint" else ["denoising_unet"])
    return own + trainables([*(SPATIAL if phase == "image" else ["denoising_unet"]), *reference_patterns(config)])


def _motion(config: DanceConfig) -> tuple[str, ...]:
    if config.backbone == "svd":
        return TEMPORAL
    return MOTION if config.motion.mid else MOTION[:2]


def _losses(config: DanceConfig, phase: Phase) -> tuple[LossTerm, ...]:
    own = config.losses
    pose = {"pose": own.pose_weight, "face": own.face_weight}
    if phase == "m2p":
        return loss_terms(pose)
    terms: dict[str, float | Schedule] = {"diffusion": own.diffusion_weight, "id": own.id_weight}
    if phase == "image":
        start_fraction = config.schedules.unfreeze
        terms |= {name: Schedule(0.0, weight, "step", start_fraction) for name, weight in pose.items()}
    else:
        terms["temporal"] = own.temporal_weight
        if phase == "joint" or (phase == "motion" and config.m2p_in_motion > 0):
            terms |= pose
    if own.custom is not None:
        terms["custom"] = own.custom_weight
    return loss_terms(terms)


def _allowed_without_gradient(config: DanceConfig, phase: Phase) -> tuple[AllowNoGradient, ...]:
    if phase == "m2p" or (phase == "motion" and config.backbone == "champ"):
        return ()
    one_key = tuple(
        AllowNoGradient(pattern, ONE_TOKEN) for pattern in (ONE_KEY if config.backbone == "svd" else CHAMP_ONE_KEY)
    )
    if phase == "image":
        return LATE_M2P, BEHIND_ZERO, FADED, *one_key
    return (BEHIND_ZERO, FADED, *one_key) if phase == "guidance" else one_key


EPOCHS_PER_FRAME = 10
"""Of the guide's growth: ``min(150, 24 + epoch // 10)``."""


def sampling_ratio(schedules: ScheduleConfig, phase: Phase, progress: Progress) -> float:
    """Share of the predicted pose in the guidance, the rest is the true pose.

    Stage B: ``min(1, (s - 0.8 N) / (0.2 N))`` for s > 0.8 N, 0 before. Later stages stay at what that reaches at its
    end. Guidance training has no prediction.
    """
    if phase in ("m2p", "guidance"):
        return 0.0
    total = progress.total_steps
    step = progress.step if phase == "image" else total
    begin, end = (fraction * total for fraction in schedules.sampling)
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
    fraction = progress.step / (schedules.ramp * progress.total_steps)
    return start + (end - start) * min(1.0, fraction)


def identity_scale(config: DanceConfig, phase: Phase, progress: Progress) -> float:
    """Factor on the identity adapters: linear from 0 in the first stage that has them, 1 after it and where published
    adapters were loaded."""
    fraction = config.schedules.identity
    if phase not in ("image", "guidance") or config.weights.identity_adapter is not None or fraction == 0:
        return 1.0
    return min(1.0, progress.step / (fraction * progress.total_steps))


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
