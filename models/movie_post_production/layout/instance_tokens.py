"""Alpha of each reference, and one token of where it is and what it looks like."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.data.movie_post_production.schema import DEPTH_LABELS
from stagecoach.models.common.layers import OwnLayerNorm, OwnLinear
from stagecoach.models.movie_post_production.config import InstanceConfig

BASE = 100.0
"""Of the frequencies BASE^(k / K) of the Fourier features (GLIGEN)."""


class NullReferences(nn.Module):
    """Learned vectors in the place of crops that a reference does not have or that are withheld (GLIGEN)."""

    def __init__(self, config: InstanceConfig) -> None:
        super().__init__()
        self.clip = nn.Parameter(torch.randn(config.clip_dim) / math.sqrt(config.clip_dim))
        self.dino = nn.Parameter(torch.randn(config.dino_dim) / math.sqrt(config.dino_dim))

    def forward(self, clip: Tensor, dino: Tensor, clip_given: Tensor, dino_given: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, N, Dc]``, ``[B, N, Dd]`` and bool ``[B, N]`` of both -> the vectors, filled."""
        return (
            torch.where(clip_given.unsqueeze(-1), clip, self.clip.to(clip.dtype)),
            torch.where(dino_given.unsqueeze(-1), dino, self.dino.to(dino.dtype)),
        )


class InstanceEncoder(nn.Module):
    """Spatial and visual feature -> instance token. The visual one goes over from CLIP (alpha 0: what kind of thing) to
    DINO (alpha 1: which one), differentiably in alpha."""

    def __init__(self, config: InstanceConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.clip_projection = OwnLinear(config.clip_dim, config.dino_dim)
        self.fusion = nn.Sequential(
            OwnLinear(config.spatial_dim + config.dino_dim, dim), OwnLayerNorm(dim), nn.SiLU(), OwnLinear(dim, dim)
        )

    def forward(self, boxes: Tensor, clip: Tensor, dino: Tensor, alpha: Tensor) -> Tensor:
        """``boxes`` fp32 ``[B, N, 4]``, ``clip`` ``[B, N, Dc]``, ``dino`` ``[B, N, Dd]``, ``alpha`` fp32 ``[B, N]`` ->
        ``[B, N, d]`` in the dtype of ``dino``."""
        a = alpha.unsqueeze(-1).to(dino.dtype)
        visual = (1 - a) * self.clip_projection(clip) + a * dino
        points = box_points(boxes, self.config.points)
        spatial = fourier(points, self.config.frequencies).flatten(-3)
        return self.fusion(torch.cat([spatial.to(dino.dtype), visual], dim=-1))


class TextContent(nn.Module):
    """Category and caption of a reference, added to its token; nothing at first."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.projection = OwnLinear(inputs, dim, "zero")

    def forward(self, text: Tensor, given: Tensor) -> Tensor:
        """``[B, N, pooled_dim]``, bool ``[B, N]`` -> ``[B, N, d]``."""
        return self.projection(text) * given.unsqueeze(-1).to(text.dtype)


def box_points(boxes: Tensor, points: int) -> Tensor:
    """``[..., points^2, 2]``: (x, y) of a grid over the closed ``boxes`` ``[..., 4]``, corners included, x in the outer
    loop (InstanceAssemble's DenseSample). A single point is the middle."""
    steps = torch.linspace(0, 1, points, device=boxes.device) if points > 1 else boxes.new_full((1,), 0.5)
    low, high = boxes[..., None, :2].float(), boxes[..., None, 2:].float()
    along = low + (high - low) * steps.unsqueeze(-1)  # [..., points, 2]
    x, y = along[..., 0], along[..., 1]
    return torch.stack(torch.broadcast_tensors(x.unsqueeze(-1), y.unsqueeze(-2)), dim=-1).flatten(-3, -2)


def fourier(x: Tensor, frequencies: int) -> Tensor:
    """``[..., 2 frequencies]``: sin and cos of ``x`` times BASE^(k / frequencies), in fp32."""
    scales = BASE ** (torch.arange(frequencies, dtype=torch.float32, device=x.device) / frequencies)
    angles = x.float().unsqueeze(-1) * scales
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def layout_weight(alpha: Tensor, least: float) -> Tensor:
    """What a reference of ``alpha`` weighs in the layout branch: 1 at alpha 0, ``least`` at alpha 1."""
    return least + (1 - least) * (1 - alpha)


class LayoutHead(OwnLinear):
    """Instance token -> the layout token that enters the first layout block; the identity at first."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, "identity")


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
    """The share of the picture that boxes ``[..., 4]`` take, in [0, 1]."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0)
    return (sides[..., 0] * sides[..., 1]).clamp(0, 1)
