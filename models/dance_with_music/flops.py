"""What one sample costs, module by module: the network of a stage is run on the meta device.

Counted are one window at the longest that the stage has and at ``config.picture``, with as many references as are used,
of MusicToPose and the denoiser with all that conditions it. Drawing skeletons and heatmaps, the losses, and decoding
for the ``arcface`` identity loss and for previews are not.
"""

from __future__ import annotations

import functools
import re

import torch

from stagecoach.data.dance_with_music.schema import FACE_DIM, KEYPOINTS, LATENT_CHANNELS
from stagecoach.models.dance_with_music.config import DanceConfig, Phase
from stagecoach.models.dance_with_music.cost_meter import CostMeter
from stagecoach.models.dance_with_music.guidance.types import GuidanceInput, render_guidance
from stagecoach.models.dance_with_music.network import DanceNetwork, build_network
from stagecoach.models.family import ModuleCost

DTYPE = torch.bfloat16
_TEMPORAL = re.compile(r"\.(motion_modules|temporal_transformer_blocks|temporal_res_block|time_pos_embed|time_mixer)\b")


def cost_table(config: DanceConfig, stage: int) -> list[ModuleCost]:
    """Rows of ``stage`` for one sample: ``m2p``, each guidance encoder, ``face_tokens``, ``reference_unet``, and of the
    denoiser what connects frames (``temporal``), the ``identity`` adapters with the cross-attention around them and the
    rest (``spatial``); split by kind where a part trains or gets no gradient."""
    return list(_measured(config.model_dump_json(), stage))


@functools.lru_cache(maxsize=32)
def _measured(config: str, stage: int) -> tuple[ModuleCost, ...]:
    # SVD's mixing factors are made on the CPU whatever the default device.
    network = build_network(DanceConfig.model_validate_json(config), stage, "meta", DTYPE).to("meta", DTYPE)
    meter = CostMeter(network, row_label, network.recompute_units())
    run_once(network, meter)
    return tuple(meter.rows())


def row_label(name: str) -> str:
    """The row of a module."""
    top = name.partition(".")[0]
    if top == "guidance":
        return ".".join(name.split(".")[:3])
    if top != "denoising_unet":
        return top
    if _TEMPORAL.search(name):
        return "denoising_unet.temporal"
    return "denoising_unet.identity" if ".attn2.processor." in name else "denoising_unet.spatial"


def frame_counts(config: DanceConfig, phase: Phase) -> tuple[int, int]:
    """How many frames MusicToPose hears, and how many are denoised, at most."""
    frames = config.frames
    heard = {"m2p": frames.m2p, "image": frames.image, "guidance": frames.guidance}.get(phase, frames.motion[1])
    return heard, frames.target if phase == "image" else heard


def run_once(network: DanceNetwork, meter: CostMeter) -> None:
    """One forward of one sample of no values, counted by ``meter``."""
    config, heard, frames = network.config, *frame_counts(network.config, network.phase)
    with torch.device("meta"):
        music, pose = torch.empty(1, heard, config.m2p.music_dim), torch.empty(1, KEYPOINTS, 3)
        conditions = _conditions(config, frames)
        x, level = torch.empty(1, frames, LATENT_CHANNELS, *config.picture.latent), torch.empty(1)
        draws = {"uid": torch.empty(1, dtype=torch.int64), "rng_key": torch.empty(1, dtype=torch.int64)}
    with meter.running(), torch.enable_grad():
        if network.phase != "guidance":
            network.m2p(music, conditions["clip"][:, 0], pose, draws)
        if network.phase != "m2p":
            network.denoise(x, level, conditions)


def _conditions(config: DanceConfig, frames: int) -> dict:
    """On the default device."""
    (h, w), count, given = config.picture.latent, config.reference.count, torch.ones(1, dtype=torch.bool)
    points, music = torch.empty(1, frames, KEYPOINTS, 3), torch.empty(1, frames, config.m2p.music_dim)
    drawn = GuidanceInput(points[..., :2], points[..., 2], None, music, config.picture.height, config.picture.width)
    return {
        "references": torch.empty(1, count, LATENT_CHANNELS, h, w),
        "reference_given": given,
        "clip": torch.empty(1, count, config.unet.cross_dim, dtype=DTYPE),
        "clip_given": given,
        "face": torch.empty(1, FACE_DIM),
        "face_given": given,
        "guidance": render_guidance(drawn, config),
        "guidance_given": given,
        "guidance_scale": 1.0,
        "identity_scale": 1.0,
    }
