"""Pictures of random numbers that the losses can digest."""

import torch
import torch.nn.functional as F

from stagecoach.models.family import Batch
from stagecoach.models.movie_post_production.config import PATCH, MoviePostConfig

REFERENCES = 18
"""Objects of a picture in DenseLayout, the guide's data set, on average."""
COVER = 2.0
"""How often a token is covered, on average."""


def sizes(config: MoviePostConfig, stage: int) -> dict[str, int]:
    """Length of each named dimension of the schema."""
    h, w = (PATCH * side for side in config.image.grid)
    return {
        "h": h,
        "w": w,
        "H": config.image.height,
        "W": config.image.width,
        "L": config.backbone.text_length,
        "N": min(config.instance.max_refs, REFERENCES),
    }


def fill(batch: Batch, config: MoviePostConfig) -> None:
    """Make pictures of ``config.image`` with square boxes that together cover them ``COVER`` times, anywhere in them;
    unit vectors; all three depths. Boxes have values on the meta device too, since the lengths of the segments follow
    from them."""
    boxes, count = batch["boxes"], batch["boxes"].shape[1]
    half = min(0.5, 0.5 * (COVER / count) ** 0.5)
    middle = half + (1 - 2 * half) * torch.special.ndtr(boxes[..., :2])
    boxes.copy_(torch.cat([middle - half, middle + half], -1).clamp(0, 1))
    batch["depth"].remainder_(3)
    for name in ("clip", "dino"):
        batch[name] = F.normalize(batch[name].float(), dim=-1).to(batch[name].dtype)
