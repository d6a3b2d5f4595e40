"""From a condition as a picture to what is added behind the denoiser's first convolution (CHAMP, arXiv 2403.14781)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.models.dance_with_music.champ.spatial_attention import SpatialTransformer
from stagecoach.models.dance_with_music.music_to_pose.normalisation import MusicNorm
from stagecoach.models.dance_with_music.own_layers import OwnConv2d, OwnLinear


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
