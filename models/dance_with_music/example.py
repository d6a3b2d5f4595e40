"""Windows of random numbers that the losses can digest."""

import torch
import torch.nn.functional as F

from stagecoach.models.dance_with_music.config import DanceConfig
from stagecoach.models.dance_with_music.stages import window_frames
from stagecoach.models.family import Batch

MANY_EPOCHS = 10**6


def sizes(config: DanceConfig, stage: int) -> dict[str, int]:
    """Length of each named dimension of the schema."""
    h, w = config.picture.latent
    longest = window_frames(config.frames, config.schedules.grown, config.phase(stage), 1, 1, MANY_EPOCHS)
    return {
        "F": longest,
        "R": config.reference.count,
        "h": h,
        "w": w,
        "H": config.picture.height,
        "W": config.picture.width,
    }


def fill(batch: Batch, config: DanceConfig) -> None:
    """Make the longest windows of ``stage``: points around the middle of the picture, all found; a face of a quarter of
    it in every frame; unit vectors; references that are pictures of their own."""
    xy = batch["pose_xy"]
    xy.copy_((65535 * torch.special.ndtr(torch.randn(xy.shape, device=xy.device))).to(torch.int32).to(xy.dtype))
    batch["pose_conf"].fill_(255)
    batch["face_box"].copy_(batch["face_box"].new_tensor([0.25, 0.25, 0.75, 0.75]).expand_as(batch["face_box"]))
    for name in ("face_valid", "ref_face_valid"):
        batch[name].fill_(1)
    batch["ref_arcface_norm"].fill_(20)
    batch["ref_frame"].fill_(-1)
    batch["ref_arcface"] = F.normalize(batch["ref_arcface"], dim=-1)
    batch["window_start"] = torch.zeros(len(xy), dtype=torch.int64, device=xy.device)
