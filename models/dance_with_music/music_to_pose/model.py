"""MusicToPose: what music, a reference and a start pose say about where each of 134 points is, frame by frame.

The guide's encoder (music projection, six bidirectional transformer layers) with what it documents and lacks: the
reference and the start pose go in, and a heatmap per point comes out. Parameters of the full size, ``music_dim`` 4800
and ``ref_dim`` 768:

==========================================  ===========
music 4800 -> 2048 -> 1024, two LayerNorms   11,936,768
six layers, 8 heads, feed-forward 4096       75,577,344
reference 768 -> 1024                           787,456
start pose 134 * 3 -> 1024 -> 1024            1,462,272
heatmap heads 1024 -> 2 * 134 * 64           17,580,800
confidence 1024 -> 134                          137,350
face, from reference and from music          1,049,600
sum                                         108,531,590
normalisation of music, shift and scale           9,600
==========================================  ===========
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.data.dance_with_music.schema import FACE_DIM, KEYPOINTS
from stagecoach.data.dance_with_music.skeleton import CONFIDENT
from stagecoach.models.common.attention import Attend
from stagecoach.models.common.keyed import keyed_dropout
from stagecoach.models.common.layers import OwnConv2d, OwnLayerNorm, OwnLinear
from stagecoach.models.dance_with_music.config import M2PConfig

CONSTANT = 1e-8
"""A feature whose variance is below this fraction of its mean square is taken as constant."""


class MusicNorm(nn.Module):
    """``(music - shift) * scale``: each feature at mean 0 and variance 1 over the training split, from where on both
    train. In fp32: stored features reach hundreds, of which 16 bits would leave little."""

    def __init__(self, music_dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(music_dim))
        self.scale = nn.Parameter(torch.ones(music_dim))

    def forward(self, music: Tensor) -> Tensor:
        """``[..., Dm]`` -> same, fp32."""
        return (music.float() - self.shift.float()) * self.scale.float()

    @torch.no_grad()
    def fit(self, music_sum: Tensor, music_square_sum: Tensor, frame_count: int) -> None:
        """From sums ``[Dm]`` over ``frame_count`` frames. A constant feature keeps a scale of 1. Raises
        ``ValueError`` where the sums are not of this many features or of no frame."""
        total, squares = (torch.as_tensor(s, dtype=torch.float64) for s in (music_sum, music_square_sum))
        if total.shape != self.shift.shape or squares.shape != self.shift.shape or frame_count < 1:
            raise ValueError(
                f"music statistics of {tuple(total.shape)} features over {frame_count} frames found, "
                f"expected {self.shift.numel()} features over at least one; set m2p.music_dim to what "
                "the shards hold"
            )
        mean, power = total / frame_count, squares / frame_count
        variance = power - mean.square()
        varies = variance > CONSTANT * power
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(varies, variance, 1.0).rsqrt())


class MusicToPose(nn.Module):
    """``T`` may be anything: positions are sinusoidal, attention reaches all frames in both directions."""

    def __init__(self, config: M2PConfig, ref_dim: int) -> None:
        super().__init__()
        self.config = config
        self.music_norm = MusicNorm(config.music_dim)
        self.music_proj = MusicProjection(config)
        self.reference = OwnLinear(ref_dim, config.dim)
        self.start_pose = StartPose(config.dim)
        self.layers = nn.ModuleList(EncoderLayer(config, f"m2p.layers.{i}") for i in range(config.layers))
        self.head = make_head(config)
        self.confidence = OwnLinear(config.dim, KEYPOINTS)
        self.face_reference = OwnLinear(config.dim, FACE_DIM)
        self.face_music = OwnLinear(config.dim, FACE_DIM)

    def forward(
        self, music: Tensor, ref: Tensor, pose0: Tensor, draws: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """``music`` ``[B, T, Dm]`` as stored; ``ref`` ``[B, Dr]``, CLIP's embedding of the reference; ``pose0``
        ``[B, 134, 3]``, x and y divided by width and height, confidence. Computes in the dtype of ``ref``. ``draws``
        holds ``uid`` and ``rng_key`` of the batch for the dropout; None: no dropout.

        Returns, in fp32: ``logits_x`` and ``logits_y`` ``[B, T, 134, R]`` (head ``full2d``: ``logits``
        ``[B, T, 134, R, R]``), which a softmax of temperature ``config.temperature`` turns into a heatmap; ``conf``
        ``[B, T, 134]``, logits of points being there; ``face`` ``[B, 512]``, a unit vector.
        """
        h = self.music_proj(self.music_norm(music).to(ref.dtype), draws)
        person = F.gelu(self.reference(ref))
        h = h + positions(h.shape[1], h.shape[2], h.device).to(h.dtype)
        h = h + (person + self.start_pose(pose0).to(ref.dtype)).unsqueeze(1)
        for layer in self.layers:
            h = layer(h, draws)
        face = self.face_reference(person) + self.face_music(h.mean(dim=1))
        return {**self.head(h), "conf": self.confidence(h).float(), "face": F.normalize(face.float(), dim=-1)}


class MusicProjection(nn.Module):
    """Linear, LayerNorm, GELU, dropout, twice."""

    def __init__(self, config: M2PConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.linears = nn.ModuleList([OwnLinear(config.music_dim, config.hidden), OwnLinear(config.hidden, config.dim)])
        self.norms = nn.ModuleList([OwnLayerNorm(config.hidden), OwnLayerNorm(config.dim)])

    def forward(self, music: Tensor, draws: dict[str, Tensor] | None) -> Tensor:
        """``[B, T, Dm]`` -> ``[B, T, dim]``."""
        for i, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            music = _drop(F.gelu(norm(linear(music))), self.dropout, draws, f"m2p.music_proj.{i}")
        return music


class StartPose(nn.Module):
    """Where the dancer stands in the reference, as one vector. A point that was not found is the picture's middle."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = OwnLinear(KEYPOINTS * 3, dim)
        self.outer = OwnLinear(dim, dim)

    def forward(self, pose: Tensor) -> Tensor:
        """``[B, 134, 3]`` -> ``[B, dim]``."""
        xy, conf = pose[..., :2], pose[..., 2:]
        centred = (2 * xy - 1) * (conf >= CONFIDENT)
        return self.outer(F.gelu(self.inner(torch.cat([centred, conf], dim=-1).flatten(1))))


class EncoderLayer(nn.Module):
    """``nn.TransformerEncoderLayer`` with keyed dropout and a named attention kernel (so none on its weights).

    LayerNorm stands behind each sum, as in the guide: six layers under a warm-up train well so (it is at twelve and
    more that gradients of this order fade, arXiv 2002.04745), and the heads get normalised input without a last norm.
    """

    def __init__(self, config: M2PConfig, name: str) -> None:
        super().__init__()
        self.name, self.heads, self.dropout = name, config.heads, config.dropout
        self.qkv = OwnLinear(config.dim, 3 * config.dim)
        self.attend = Attend()
        self.out = OwnLinear(config.dim, config.dim)
        self.norm1 = OwnLayerNorm(config.dim)
        self.linear1 = OwnLinear(config.dim, config.feed_forward)
        self.linear2 = OwnLinear(config.feed_forward, config.dim)
        self.norm2 = OwnLayerNorm(config.dim)

    def forward(self, x: Tensor, draws: dict[str, Tensor] | None) -> Tensor:
        """``[B, T, dim]``."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        moved = self.out(self.attend(q, k, v))
        x = self.norm1(x + _drop(moved, self.dropout, draws, f"{self.name}.attention"))
        inner = _drop(F.gelu(self.linear1(x)), self.dropout, draws, f"{self.name}.inner")
        return self.norm2(x + _drop(self.linear2(inner), self.dropout, draws, f"{self.name}.outer"))


def positions(count: int, dim: int, device: torch.device | str) -> Tensor:
    """Sinusoidal positions fp32 ``[count, dim]`` (arXiv 1706.03762, section 3.5): sines in even columns."""
    rates = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / dim))
    angles = torch.arange(count, device=device, dtype=torch.float32).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]


def _drop(x: Tensor, p: float, draws: dict[str, Tensor] | None, purpose: str) -> Tensor:
    return x if draws is None else keyed_dropout(x, p, draws, purpose, training=True)


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
