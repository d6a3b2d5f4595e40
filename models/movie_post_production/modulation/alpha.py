"""Alpha: whether a reference is a foreground whose identity counts (1) or a background that is placed only (0)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.data.movie_post_production.schema import DEPTH_LABELS
from stagecoach.models.movie_post_production.config import InstanceConfig
from stagecoach.models.movie_post_production.layers import OwnLinear


class AlphaPredictor(nn.Module):
    """Crop, size and depth label -> alpha; 0.5 for every reference at first."""

    def __init__(self, config: InstanceConfig) -> None:
        super().__init__()
        self.hidden = OwnLinear(config.clip_dim + 1 + len(DEPTH_LABELS), config.alpha_hidden)
        self.out = OwnLinear(config.alpha_hidden, 1, "zero")

    def forward(self, clip: Tensor, boxes: Tensor, depth: Tensor) -> Tensor:
        """``clip`` ``[B, N, Dc]``, ``boxes`` fp32 ``[B, N, 4]``, ``depth`` int64 ``[B, N]`` -> fp32 ``[B, N]``."""
        label = F.one_hot(depth, len(DEPTH_LABELS))
        features = torch.cat([clip, area(boxes).unsqueeze(-1).to(clip.dtype), label.to(clip.dtype)], dim=-1)
        return torch.sigmoid(self.out(F.relu(self.hidden(features))).squeeze(-1).float())


def area(boxes: Tensor) -> Tensor:
    """The part of the picture that boxes ``[..., 4]`` take, in [0, 1]."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0)
    return (sides[..., 0] * sides[..., 1]).clamp(0, 1)
