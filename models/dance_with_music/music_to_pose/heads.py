"""From a frame's features to logits over the pixels of a heatmap per point."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.data.dance_with_music.schema import KEYPOINTS
from stagecoach.models.dance_with_music.config import M2PConfig
from stagecoach.models.dance_with_music.own_layers import OwnConv2d, OwnLinear


class FactorisedHead(nn.Module):
    """One distribution over columns and one over rows per point, as DWPose itself predicts (SimCC)."""

    def __init__(self, config: M2PConfig) -> None:
        super().__init__()
        self.resolution = config.resolution
        # Logits are divided by the temperature: so divided, they begin at the scale that Xavier's weights give.
        self.logits = OwnLinear(config.dim, 2 * KEYPOINTS * config.resolution, gain=config.temperature)

    def forward(self, h: Tensor) -> dict[str, Tensor]:
        """``[B, T, dim]`` -> ``logits_x`` and ``logits_y``, fp32 ``[B, T, 134, R]``."""
        x, y = self.logits(h.float()).unflatten(-1, (2, KEYPOINTS, self.resolution)).unbind(-3)
        return {"logits_x": x, "logits_y": y}


class Full2dHead(nn.Module):
    """One distribution over all pixels per point: the guide's path from features to a picture of one channel, through
    convolutions of ``widths``, to 134 channels."""

    def __init__(self, config: M2PConfig) -> None:
        super().__init__()
        self.resolution = config.resolution
        widths = config.widths
        self.picture = OwnLinear(config.dim, config.resolution**2)
        self.conv_in = OwnConv2d(1, widths[0], 3)
        self.blocks = nn.ModuleList(
            OwnConv2d(inputs, outputs, 3)
            for before, after in pairwise(widths)
            for inputs, outputs in ((before, before), (before, after))
        )
        self.logits = OwnConv2d(widths[-1], KEYPOINTS, 7)

    def forward(self, h: Tensor) -> dict[str, Tensor]:
        """``[B, T, dim]`` -> ``logits``, fp32 ``[B, T, 134, R, R]``."""
        side = self.resolution
        x = F.silu(self.conv_in(self.picture(h).reshape(-1, 1, side, side)))
        for block in self.blocks:
            x = F.silu(block(x))
        return {"logits": self.logits(x).float().unflatten(0, h.shape[:2])}


def make_head(config: M2PConfig) -> nn.Module:
    return {"factorised": FactorisedHead, "full2d": Full2dHead}[config.head](config)
