"""The integrated reconstruction and generation layer: one step of both streams with an exchange in its middle."""

from __future__ import annotations

from torch import Tensor, nn

from stagecoach.models.fantasy_world.backbone import SplitWanBlock
from stagecoach.models.fantasy_world.geometry.interaction import BiCrossAttention


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
