"""The bridge over which a block tells the next one what it found in the boxes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.models.movie_post_production.config import FeedbackConfig
from stagecoach.models.movie_post_production.layers import OwnLinear


class FeedbackBridge(nn.Module):
    """Means of hidden states over boxes, normalised since their size grows with depth -> offsets of the modulation of
    the next block; zero at first."""

    def __init__(self, config: FeedbackConfig, dim: int) -> None:
        super().__init__()
        if config.kind == "full":
            self.bridge: nn.Module = OwnLinear(dim, dim, "zero")
        else:
            self.bridge = nn.Sequential(
                OwnLinear(dim, config.rank, bias=False), OwnLinear(config.rank, dim, "zero", bias=False)
            )

    def forward(self, found: Tensor) -> Tensor:
        """``[B, N, d]`` -> ``[B, N, d]``."""
        return self.bridge(F.layer_norm(found.float(), found.shape[-1:], eps=1e-6).to(found.dtype))


def box_means(hidden: Tensor, cover: Tensor) -> Tensor:
    """Means of ``hidden`` ``[B, T, d]`` over the tokens of each box, ``cover`` bool ``[B, N, T]`` -> ``[B, N, d]``,
    zero for an empty one. The gradient flows into ``hidden``."""
    weights = cover / cover.sum(-1, keepdim=True).clamp_min(1)
    return weights.to(hidden.dtype) @ hidden
