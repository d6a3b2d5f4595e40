"""Dense prediction heads: depth and points with confidence, at the resolution of the input frames; causal temporal
upsampling by four, the way the Wan VAE's decoder does it.

DPT over four taps of the geometry stream, with temporal upsampling in each stream (FantasyWorld's 3-D DPT; DPT as in
VGGT, section 3.3). The deepest tap is enlarged four times, the shallowest halved. Time is upsampled on the smaller of
a stream's two grids, as the enlargement knows nothing of time and the cost is in the temporal convolutions; then only
the frames that are asked for go on, a few at a time. ``published`` heads compute what the published code does: they
enlarge first, hide the first frame from the doubling, norm without eps, and add what their residuals' ReLU leaves.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.models.common.layers import Float32Pointwise
from stagecoach.models.fantasy_world.config import DPTConfig
from stagecoach.models.fantasy_world.geometry.tokens import patch_tokens


class CausalConv3d(nn.Conv3d):
    """Convolution that sees this frame and earlier ones; zeros stand before the first. Space keeps its size."""

    def __init__(self, channels: int, out_channels: int, time: int, space: int) -> None:
        super().__init__(channels, out_channels, (time, space, space), padding=(0, space // 2, space // 2))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, f, h, w]`` -> same sizes, of the layer's channels."""
        return super().forward(F.pad(x, (0, 0, 0, 0, self.kernel_size[0] - 1, 0)))


class ChannelNorm(nn.Module):
    """RMS norm over the channels of ``[B, C, ...]``, one gain per channel."""

    def __init__(self, channels: int, published: bool = False) -> None:
        super().__init__()
        self.published = published
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, ...]`` -> same, normalised over the channels."""
        if self.published:
            unit = F.normalize(x.float(), dim=1).type_as(x) * x.shape[1] ** 0.5
            return unit * self.gain.view(-1, *(1,) * (x.ndim - 2))
        inverse = torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6).type_as(x)
        return x * inverse * self.gain.view(-1, *(1,) * (x.ndim - 2))


class TemporalDoubling(nn.Module):
    """``[B, C, f, h, w]`` -> ``[B, C, 2f - 1, h, w]``: each frame but the first becomes two neighbours. A
    ``published`` doubling does not see the first one, as Wan's decoder, which gets it as a chunk of its own."""

    def __init__(self, channels: int, published: bool = False) -> None:
        super().__init__()
        self.published = published
        self.upsample = CausalConv3d(channels, 2 * channels, 3, 1)
        self.norm = ChannelNorm(channels, published)
        self.conv = CausalConv3d(channels, channels, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        doubled = self.upsample(F.pad(x[:, :, 1:], (0, 0, 0, 0, 1, 0)) if self.published else x)
        pairs = doubled[:, :, 1:].unflatten(1, (2, -1))  # [B, 2, C, f - 1, h, w]
        x = torch.cat([x[:, :, :1], pairs.movedim(1, 3).flatten(2, 3)], 2)
        return x + self.conv(F.silu(self.norm(x)))


class TemporalUpsampler(nn.Module):
    """``[B, C, f, h, w]`` -> ``[B, C, 4(f - 1) + 1, h, w]``. Latent frame k reaches output frames from 4(k - 1) + 1
    on, and none before."""

    def __init__(self, channels: int, published: bool = False) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, 1, 1)
        self.first, self.second = (TemporalDoubling(channels, published) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.conv(x)))


OUTPUTS = {"depth": 2, "points": 4}
"""Channels of the last convolution: the value's and one for its confidence."""
_CODE_RATIO, _CODE_BASE = 0.1, 100.0


class ResidualConv(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, plus the input; plus the input's ReLU where it is ``published``, whose ReLU is in place."""

    def __init__(self, channels: int, published: bool = False) -> None:
        super().__init__()
        self.published = published
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w]`` -> same."""
        positive = F.relu(x)
        return (positive if self.published else x) + self.conv2(F.relu(self.conv1(positive)))


class FusionStep(nn.Module):
    """Adds a finer stream (but for the first step) and resizes. The 1x1 convolution comes before the interpolation,
    with which it commutes, as it is cheaper there."""

    def __init__(self, channels: int, adds: bool, published: bool = False) -> None:
        super().__init__()
        self.skip = ResidualConv(channels, published) if adds else None
        self.refine = ResidualConv(channels, published)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, finer: Tensor | None, size: tuple[int, int]) -> Tensor:
        """``x`` ``[N, C, h, w]`` plus the ``finer`` stream, enlarged to ``size``."""
        if self.skip is not None:
            x = x + self.skip(finer)
        return resize(self.out(self.refine(x)), size)


class OutputBranch(nn.Module):
    """The last convolutions of one output, the very last in fp32: log depth in bf16 would be a coarse ruler."""

    def __init__(self, hidden: int, last: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, last, 3, padding=1)
        self.conv2 = Float32Pointwise(last, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x)))


class SpatialFusion(nn.Module):
    """The part of a head that works frame by frame; called once per chunk of frames."""

    def __init__(self, config: DPTConfig, outputs: Sequence[str], published: bool = False) -> None:
        super().__init__()
        self.published = published
        a, b, *_ = config.channels
        self.enlarge = nn.ModuleList(
            [nn.ConvTranspose2d(a, a, 4, stride=4), nn.ConvTranspose2d(b, b, 2, stride=2), nn.Identity(), nn.Identity()]
        )
        self.adapt = nn.ModuleList(nn.Conv2d(c, config.features, 3, padding=1, bias=False) for c in config.channels)
        self.steps = nn.ModuleList(FusionStep(config.features, i < 3, published) for i in range(4))
        self.reduce = nn.Conv2d(config.features, config.hidden, 3, padding=1)
        self.outputs = nn.ModuleDict(
            {name: OutputBranch(config.hidden, config.last, OUTPUTS[name]) for name in outputs}
        )

    def forward(self, height: int, width: int, *streams: Tensor) -> tuple[Tensor, ...]:
        """Four streams ``[n, C_i, h_i, w_i]``, deepest tap first -> per output fp32 ``[n, channels, H, W]``. Published
        ones are enlarged already."""
        if not self.published:
            streams = tuple(enlarge(x) for enlarge, x in zip(self.enlarge, streams, strict=True))
        maps = [adapt(x) for adapt, x in zip(self.adapt, streams, strict=True)]
        sizes = [(2 * maps[0].shape[2], 2 * maps[0].shape[3]), *(x.shape[2:] for x in maps[:3])]
        x = self.steps[3](maps[3], None, sizes[3])
        for i in (2, 1, 0):
            x = self.steps[i](x, maps[i], sizes[i])
        x = resize(self.reduce(x), (height, width))
        x = x + position_code(x.shape[1], height, width, width / height, x)
        return tuple(branch(x) for branch in self.outputs.values())


class DPT(nn.Module):
    """One trunk with the outputs named."""

    def __init__(self, config: DPTConfig, tap_dim: int, outputs: Sequence[str], published: bool = False) -> None:
        super().__init__()
        self.published = published
        self.chunk = config.chunk
        self.norm = nn.LayerNorm(tap_dim)
        self.project = nn.ModuleList(nn.Conv2d(tap_dim, c, 1) for c in config.channels)
        last = config.channels[3]
        self.shrink = nn.ModuleList(
            [nn.Identity(), nn.Identity(), nn.Identity(), nn.Conv2d(last, last, 3, stride=2, padding=1)]
        )
        self.temporal = nn.ModuleList(TemporalUpsampler(c, published) for c in config.channels)
        self.fusion = SpatialFusion(config, outputs, published)

    def forward(
        self, taps: Sequence[Tensor], frames: Tensor, grid: tuple[int, int, int], height: int, width: int
    ) -> dict[str, Tensor]:
        """Taps ``[B, f (5 + h w), tap_dim]`` shallow to deep, frame indices ``[B, K]`` -> fp32 ``[B, K, c, H, W]``."""
        batch, selected = frames.shape
        streams = []
        for project, shrink, enlarge, temporal, tap in zip(
            self.project, self.shrink, self.fusion.enlarge, self.temporal, reversed(taps), strict=True
        ):
            x = self.norm(patch_tokens(tap, grid[0])).flatten(0, 1).unflatten(1, grid[1:])  # [B f, h, w, d]
            x = project(x.permute(0, 3, 1, 2))
            x = shrink(x + position_code(x.shape[1], *x.shape[2:], width / height, x))
            if self.published:
                x = enlarge(x)
            x = temporal(x.unflatten(0, (batch, -1)).transpose(1, 2)).transpose(1, 2)  # [B, F, C, h, w]
            rows = torch.arange(batch, device=frames.device)[:, None] * x.shape[1] + frames
            streams.append(x.flatten(0, 1).index_select(0, rows.flatten()))
        chunks = [
            self.fusion(height, width, *part) for part in zip(*(s.split(self.chunk) for s in streams), strict=True)
        ]
        return {
            name: torch.cat(parts).unflatten(0, (batch, selected))
            for name, parts in zip(self.fusion.outputs, zip(*chunks, strict=True), strict=True)
        }


class DenseHeads(nn.Module):
    """Depth and points, from one shared trunk or one trunk each."""

    def __init__(self, config: DPTConfig, tap_dim: int, published: bool = False) -> None:
        super().__init__()
        groups = [tuple(OUTPUTS)] if config.shared_trunk else [(name,) for name in OUTPUTS]
        self.heads = nn.ModuleDict({"_and_".join(names): DPT(config, tap_dim, names, published) for names in groups})

    def forward(
        self, taps: Sequence[Tensor], frames: Tensor, grid: tuple[int, int, int], height: int, width: int
    ) -> dict[str, Tensor]:
        """fp32: depth (positive) and its confidence (over 1) ``[B, K, H, W]``, points ``[B, K, H, W, 3]`` and its. With
        no frames (K = 0) no head is called."""
        if not frames.shape[1]:
            none = torch.zeros(len(frames), 0, height, width, device=frames.device)
            dense = dict.fromkeys(("depth", "depth_confidence", "points_confidence"), none)
            return dense | {"points": none[..., None].expand(*none.shape, 3)}
        raw: dict[str, Tensor] = {}
        for head in self.heads.values():
            raw |= head(taps, frames, grid, height, width)
        depth, points = raw["depth"], raw["points"].movedim(2, -1)
        return {
            "depth": depth[:, :, 0].exp(),
            "depth_confidence": 1 + depth[:, :, 1].exp(),
            "points": points[..., :3].sign() * points[..., :3].abs().expm1(),
            "points_confidence": 1 + points[..., 3].exp(),
        }


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``[N, C, h, w]`` -> ``[N, C, *size]``, bilinear."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def position_code(channels: int, height: int, width: int, aspect: float, like: Tensor) -> Tensor:
    """Sines and cosines of the position in the image, ``[1, C, h, w]`` in the dtype of ``like``; half of the channels
    for x, half for y. Coordinates span [-1, 1] along the diagonal, so that frames of another ``aspect`` (W / H) keep
    their scale."""
    diagonal = math.hypot(aspect, 1.0)
    axes = []
    for size, span in ((width, aspect / diagonal), (height, 1.0 / diagonal)):
        position = (2 * torch.arange(size, device=like.device, dtype=torch.float32) + 1 - size) / size * span
        power = torch.arange(channels // 4, device=like.device, dtype=torch.float32) / (channels // 4)
        angle = position * (_CODE_BASE**-power)[:, None]
        axes.append(torch.cat([angle.sin(), angle.cos()]).mul(_CODE_RATIO).to(like.dtype))  # [C / 2, size]
    x, y = axes
    return torch.cat([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)])[None]
