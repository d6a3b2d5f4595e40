"""StableAnimator's face encoder (arXiv 2411.17697): a face's identity as tokens of the denoiser's cross-attention."""

import torch
from torch import Tensor, nn

from stagecoach.data.dance_with_music.schema import FACE_DIM
from stagecoach.models.common.attention import Attend
from stagecoach.models.common.layers import OwnLayerNorm, OwnLinear
from stagecoach.models.dance_with_music.config import FaceConfig

FEED_FORWARD = 4


class FaceTokens(nn.Module):
    """The face as ``tokens``, which then read CLIP's embedding of the picture ``depth`` times. Modules have the
    published weights' names; at four tokens and depth four 57,183,232 parameters for 1024, 33,188,352 for 768.

    ``proj_out`` starts at zero, so that a fresh encoder gives tokens of zero; behind it stands a LayerNorm, which with
    the first step brings them to size 1 (why the identity attention fades in by a schedule).
    """

    def __init__(self, config: FaceConfig, cross_dim: int) -> None:
        super().__init__()
        if cross_dim % config.heads:
            raise ValueError(f"unet.cross_dim is {cross_dim}, expected a multiple of face.heads, {config.heads}")
        self.tokens, self.width = config.tokens, cross_dim
        self.proj = nn.Sequential(
            OwnLinear(FACE_DIM, 2 * FACE_DIM), nn.GELU(), OwnLinear(2 * FACE_DIM, config.tokens * cross_dim)
        )
        self.norm = OwnLayerNorm(cross_dim)
        self.fusion_model = FacePerceiver(config, cross_dim)

    def forward(self, face: Tensor, embedding: Tensor) -> Tensor:
        """``face`` ``[B, 512]``, ArcFace's vector at its length; CLIP's ``embedding`` ``[B, D]`` -> ``[B, tokens, D]``
        in the dtype of ``embedding``."""
        x = self.norm(self.proj(face.to(embedding.dtype)).unflatten(-1, (self.tokens, self.width)))
        return self.fusion_model(x, embedding.unsqueeze(1))


class FacePerceiver(nn.Module):
    """Face tokens that read CLIP's embedding, layer by layer."""

    def __init__(self, config: FaceConfig, dim: int) -> None:
        super().__init__()
        self.proj_in = OwnLinear(dim, dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, config.heads), feed_forward(dim)]) for _ in range(config.depth)
        )
        self.proj_out = OwnLinear(dim, dim)
        nn.init.zeros_(self.proj_out.weight)
        self.norm_out = OwnLayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``[B, tokens, D]`` and ``[B, 1, D]``."""
        context = self.proj_in(context)
        for attention, ff in self.layers:
            x = x + attention(context, x)
            x = x + ff(x)
        return self.norm_out(self.proj_out(x))


class PerceiverAttention(nn.Module):
    """Tokens attend to the context and to themselves (Flamingo's resampler, arXiv 2204.14198)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = OwnLayerNorm(dim), OwnLayerNorm(dim)
        self.to_q = OwnLinear(dim, dim, bias=False)
        self.to_kv = OwnLinear(dim, 2 * dim, bias=False)
        self.attend = Attend()
        self.to_out = OwnLinear(dim, dim, bias=False)

    def forward(self, context: Tensor, tokens: Tensor) -> Tensor:
        """``context`` ``[B, 1, D]``, ``tokens`` ``[B, K, D]`` -> ``[B, K, D]``."""
        tokens = self.norm2(tokens)
        q = self.to_q(tokens).unflatten(-1, (self.heads, -1))
        k, v = self.to_kv(torch.cat([self.norm1(context), tokens], dim=1)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return self.to_out(self.attend(q, k, v))


def feed_forward(dim: int) -> nn.Sequential:
    """LayerNorm and two linear layers without biases around a GELU."""
    return nn.Sequential(
        OwnLayerNorm(dim),
        OwnLinear(dim, FEED_FORWARD * dim, bias=False),
        nn.GELU(),
        OwnLinear(FEED_FORWARD * dim, dim, bias=False),
    )
