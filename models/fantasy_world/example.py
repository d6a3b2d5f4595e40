"""A clip of random numbers that the losses can digest."""

import torch

from stagecoach.models.family import Batch
from stagecoach.models.fantasy_world.config import FantasyWorldConfig


def sizes(config: FantasyWorldConfig, stage: int) -> dict[str, int]:
    """Length of each named dimension of the schema."""
    clip, (frames, height, width) = config.clip, config.clip.latent
    return {
        "f": frames,
        "h": height,
        "w": width,
        "F": clip.frames,
        "H": clip.height,
        "W": clip.width,
        "L": config.backbone.text_length,
    }


def fill(batch: Batch, config: FantasyWorldConfig) -> None:
    """Make clips of ``config.clip`` with depth around 1 scene unit, a camera that moves forward without turning, and a
    field of view of 64 degrees."""
    clip = config.clip
    depth, intrinsics = batch["depth"], batch["intrinsics"]
    depth.mul_(0.2).abs_().add_(0.5)
    extrinsics = torch.eye(4, device=depth.device)[:3].repeat(len(depth), clip.frames, 1, 1)
    extrinsics[..., 2, 3] = -torch.linspace(0, 0.4, clip.frames, device=depth.device)
    batch["extrinsics"] = extrinsics
    middle = [0.8 * clip.width, 0.8 * clip.width, clip.width / 2, clip.height / 2]
    intrinsics.copy_(intrinsics.new_tensor(middle).expand_as(intrinsics))
