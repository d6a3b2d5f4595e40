"""The integrated reconstruction and generation layer: one step of both streams with an exchange in its middle."""

import torch
from diffusers.models.normalization import FP32LayerNorm
from torch import Tensor, nn

from stagecoach.models.common.attention import Attend
from stagecoach.models.fantasy_world.backbone import SplitWanBlock
from stagecoach.models.fantasy_world.config import InteractionConfig
from stagecoach.models.fantasy_world.rope import rotate


class BiCrossAttention(nn.Module):
    """x_v += gamma_v * softmax(q k^T) v_g and x_g += gamma_g * softmax(k q^T) v_v.

    One projection per stream serves as query in one direction and as key in the other; the two softmaxes are separate.
    Gates are per channel and start at 0, so a new interaction changes nothing.
    """

    def __init__(self, config: InteractionConfig, video_dim: int, geometry_dim: int) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm_video = FP32LayerNorm(video_dim, 1e-6, elementwise_affine=False)
        self.norm_geometry = FP32LayerNorm(geometry_dim, 1e-6, elementwise_affine=False)
        self.video_match, self.video_value = nn.Linear(video_dim, width), nn.Linear(video_dim, width)
        self.geometry_match, self.geometry_value = nn.Linear(geometry_dim, width), nn.Linear(geometry_dim, width)
        self.video_out, self.geometry_out = nn.Linear(width, video_dim), nn.Linear(width, geometry_dim)
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.video_gate = nn.Parameter(torch.zeros(video_dim))
        self.geometry_gate = nn.Parameter(torch.zeros(geometry_dim))
        self.attend = Attend()

    def forward(
        self, x_v: Tensor, x_g: Tensor, cos_v: Tensor, sin_v: Tensor, cos_g: Tensor, sin_g: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``x_v`` ``[B, N, d_v]``, ``x_g`` ``[B, N + 5f, d_g]`` and the rotations of both."""
        n_v, n_g = self.norm_video(x_v), self.norm_geometry(x_g)
        q = rotate(self._split(self.video_match(n_v)), (cos_v, sin_v))
        k = rotate(self._split(self.geometry_match(n_g)), (cos_g, sin_g))
        to_video = self.video_out(self.attend(q, k, self._split(self.geometry_value(n_g))))
        to_geometry = self.geometry_out(self.attend(k, q, self._split(self.video_value(n_v))))
        return x_v + to_video * self.video_gate, x_g + to_geometry * self.geometry_gate

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1))


class IRGLayer(nn.Module):
    """Attention halves of both streams, bi-directional cross-attention, feed-forward halves (FantasyWorld, IRG).

    Stage 1 builds it with ``geo_block`` alone. It is a unit of recompute. ``tapped`` says whether the heads read it.
    """

    def __init__(
        self,
        geo_block: nn.Module,
        tapped: bool,
        video_block: SplitWanBlock | None = None,
        cross_attention: BiCrossAttention | None = None,
    ) -> None:
        super().__init__()
        self.tapped = tapped
        self.geo_block = geo_block
        self.video_block = video_block
        self.cross_attention = cross_attention

    def forward(
        self, x_v: Tensor | None, x_g: Tensor, geometry: tuple, video: tuple, cross: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """``x_v`` ``[B, f h w, d_v]`` (None without a video block), ``x_g`` ``[B, f (5 + h w), d_g]``; ``geometry`` and
        ``video`` are what the two blocks take besides, ``cross`` the rotations of the cross-attention. Returns both
        streams and, of a tapped layer, what the heads read."""
        x_g, geometry_rest = self.geo_block.open(x_g, *geometry)
        if self.video_block is not None:
            x_v, video_rest = self.video_block.open(x_v, *video)
            x_v, x_g = self.cross_attention(x_v, x_g, *cross)
            x_v = self.video_block.close(x_v, video_rest)
        x_g = self.geo_block.close(x_g, geometry_rest)
        return x_v, x_g, self.geo_block.features(x_g, geometry_rest) if self.tapped else None
