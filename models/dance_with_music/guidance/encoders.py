"""From a condition as a picture to what is added behind the denoiser's first convolution (CHAMP, arXiv 2403.14781)."""

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.models.common.attention import Attend
from stagecoach.models.common.layers import OwnConv2d, OwnGroupNorm, OwnLayerNorm, OwnLinear
from stagecoach.models.dance_with_music.music_to_pose.model import MusicNorm

FEED_FORWARD = 4


class SpatialTransformer(nn.Module):
    """GroupNorm, 1 x 1 convolution in, one block, 1 x 1 convolution out, residual. Where ``heads`` do not divide
    ``channels`` the block is as wide as the multiple of ``heads`` below."""

    def __init__(self, channels: int, heads: int, groups: int = 32) -> None:
        super().__init__()
        inner = channels // heads * heads
        self.norm = OwnGroupNorm(math.gcd(groups, channels), channels, eps=1e-6)
        self.proj_in = OwnConv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList([SelfAttentionBlock(inner, heads)])
        self.proj_out = OwnConv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w]``."""
        size = x.shape[-2:]
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, size))


class SelfAttentionBlock(nn.Module):
    """Pre-LN self-attention and GEGLU, as diffusers' ``BasicTransformerBlock`` without cross-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = OwnLayerNorm(dim)
        self.attn1 = SelfAttention(dim, heads)
        self.norm3 = OwnLayerNorm(dim)
        self.ff = GatedFeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, tokens, dim]``."""
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class SelfAttention(nn.Module):
    """Self-attention without biases on q, k and v."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (OwnLinear(dim, dim, bias=False) for _ in range(3))
        self.attend = Attend()
        self.to_out = nn.ModuleList([OwnLinear(dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """``[N, tokens, dim]`` -> same."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](self.attend(q, k, v))


class GatedFeedForward(nn.Module):
    """GEGLU (arXiv 2002.05202). ``net.1`` is where diffusers has a dropout."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [GatedLinear(dim, FEED_FORWARD * dim), nn.Identity(), OwnLinear(FEED_FORWARD * dim, dim)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, tokens, dim]`` -> same."""
        return self.net[2](self.net[0](x))


class GatedLinear(nn.Module):
    """One linear layer for value and gate: value gelu(gate)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = OwnLinear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class GuidanceEncoder(nn.Module):
    """A 3 x 3 convolution in, a pair of them per step of ``widths``, attention, and a convolution to ``outputs`` that
    starts at zero, so that a fresh encoder adds nothing. Modules have CHAMP's names.

    ``attention``: behind each convolution of the pairs and once more at the end (``every``, the guide's encoders: for
    conditions at the latents' resolution), or behind the last alone (``last``, what CHAMP's forward calls: 4096 tokens
    at 512 x 512, where pixels would be 262,144). CHAMP holds six more transformers in the latter case and never calls
    them; 3 -> 320 channels it counts 3,833,136 parameters of which 2,270,736 live. Here all live: 134 -> 320 with
    ``every`` has 3,852,000, 3 -> 320 with ``last`` 2,270,736.

    ``down``: factor between the condition's sides and the latents', 1 or a power of two; what the pairs' strides do not
    reach is averaged before. ``inner``: the guide's width of 1280 behind the last 3 x 3 convolution, from where a
    1 x 1 convolution, then the one that starts at zero, leads to ``outputs``.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: tuple[int, ...],
        heads: int,
        down: int = 1,
        attention: Literal["every", "last"] = "every",
        inner: int | None = None,
    ) -> None:
        super().__init__()
        self.conv_in = OwnConv2d(inputs, widths[0], 3)
        self.blocks = nn.ModuleList()
        self.attentions = nn.ModuleDict()
        halvings = down.bit_length() - 1
        for pair, (before, after) in enumerate(pairwise(widths)):
            self.blocks.append(OwnConv2d(before, before, 3))
            self.blocks.append(OwnConv2d(before, after, 3, stride=2 if pair < halvings else 1))
            if attention == "every":
                self.attentions[str(2 * pair)] = SpatialTransformer(before, heads, groups=1)
                self.attentions[str(2 * pair + 1)] = SpatialTransformer(after, heads)
        last = widths[-1]
        if attention == "last":
            self.attentions[str(len(self.blocks) - 1)] = SpatialTransformer(last, heads)
        self.guidance_attention = SpatialTransformer(last, heads) if attention == "every" else None
        self.pool = 2 ** max(halvings - (len(widths) - 1), 0)
        self.conv_out = OwnConv2d(last, inner or outputs, 3, zero=inner is None)
        self.project = None if inner is None else OwnConv2d(inner, outputs, 1, zero=True)

    def forward(self, condition: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` -> ``[N, outputs, H / down, W / down]``, in the dtype of ``condition``."""
        x = F.avg_pool2d(condition, self.pool) if self.pool > 1 else condition
        x = F.silu(self.conv_in(x))
        for i, block in enumerate(self.blocks):
            x = F.silu(block(x))
            if str(i) in self.attentions:
                x = self.attentions[str(i)](x)
        if self.guidance_attention is not None:
            x = self.guidance_attention(x)
        x = self.conv_out(x)
        return x if self.project is None else self.project(x)


class MusicGuidance(nn.Module):
    """The guide's music guidance: each frame's features, normalised as MusicToPose's are, become a picture of
    ``resolution`` pixels per side."""

    def __init__(self, music_dim: int, resolution: int, encoder: GuidanceEncoder) -> None:
        super().__init__()
        self.resolution = resolution
        self.music_norm = MusicNorm(music_dim)
        self.transform_in = OwnLinear(music_dim, resolution**2)
        self.encoder = encoder

    def forward(self, condition: Tensor) -> Tensor:
        """``[N, Dm]`` -> ``[N, outputs, R, R]``, in the dtype of the condition, or of the weights where it is fp32."""
        dtype = self.transform_in.weight.dtype if condition.dtype == torch.float32 else condition.dtype
        pixels = self.transform_in(self.music_norm(condition).to(dtype))
        return self.encoder(pixels.unflatten(1, (1, self.resolution, self.resolution)))


class MusicMapGuidance(nn.Module):
    """Pictures of music, each channel normalised over the training split."""

    def __init__(self, channels: int, encoder: GuidanceEncoder) -> None:
        super().__init__()
        self.music_norm = MusicNorm(channels)
        self.encoder = encoder

    def forward(self, condition: Tensor) -> Tensor:
        """``[N, C, h, w]`` -> ``[N, outputs, h, w]``, in the dtype of the condition, or of the weights where it is
        fp32."""
        dtype = self.encoder.conv_in.weight.dtype if condition.dtype == torch.float32 else condition.dtype
        return self.encoder(self.music_norm(condition.movedim(1, -1)).movedim(-1, 1).to(dtype))


CONVOLUTIONS = (
    (3, 3, 3, 1),
    (3, 16, 4, 2),
    (16, 16, 3, 1),
    (16, 32, 4, 2),
    (32, 32, 3, 1),
    (32, 64, 4, 2),
    (64, 64, 3, 1),
    (64, 128, 3, 1),
)
"""Channels in and out, kernel and stride; padding is 1."""
SCALE = 2.0


class PoseNet(nn.Module):
    """He's initial values, but for the last convolution, which starts at zero; its output is multiplied by a learned
    number. Modules have the published weights' names; 205,557 parameters at 320 channels."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width, kernel, stride in CONVOLUTIONS:
            layer = OwnConv2d(inputs, width, kernel, stride, padding=1)
            nn.init.normal_(layer.weight, std=(2 / (kernel * kernel * inputs)) ** 0.5)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.SiLU()]
        self.conv_layers = nn.Sequential(*layers)
        self.final_proj = OwnConv2d(CONVOLUTIONS[-1][1], outputs, 1, zero=True)
        self.scale = nn.Parameter(torch.full((1,), SCALE))

    def forward(self, condition: Tensor) -> Tensor:
        """``[N, 3, H, W]`` in -1..1 -> ``[N, outputs, H / 8, W / 8]``."""
        return self.final_proj(self.conv_layers(condition)) * self.scale.to(condition.dtype)
