"""Identity adapters: the spatial cross-attentions read the face tokens too, on the level of what they read already
(StableAnimator, arXiv 2411.17697, section 3.3). Both backbones use them."""

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from stagecoach.models.common.attention import Attend
from stagecoach.models.common.layers import OwnLinear

ALIGN_EPS, LARGEST_GAIN = 1e-5, 100.0
"""Face tokens start at zero, where the published division by 1e-5 alone would let a first gradient overflow fp16."""


class IdentityAdapter(nn.Module):
    """The ``processor`` of a cross-attention: keys and values for the face tokens. They start as copies of that
    layer's own ``to_k`` and ``to_v`` or from published weights, and are on the meta device until then."""

    def __init__(self, cross_dim: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        with torch.device("meta"):
            self.id_to_k = OwnLinear(cross_dim, width, bias=False)
            self.id_to_v = OwnLinear(cross_dim, width, bias=False)
        self.attend = Attend()

    def forward(self, q: Tensor, z: Tensor, tokens: Tensor, scale: float) -> Tensor:
        """``q`` ``[B F, N, heads, d]``, queries of F frames per sample; ``z`` ``[B F, N, C]``, what they read of the
        picture; ``tokens`` ``[B, K, D]`` -> ``z`` with ``scale`` times what they read of the face, moved to its mean
        and standard deviation."""
        k, v = (layer(tokens).unflatten(-1, (self.heads, -1)) for layer in (self.id_to_k, self.id_to_v))
        frames = q.shape[0] // tokens.shape[0]
        face = self.attend(q, over_frames(k, frames), over_frames(v, frames))
        return z + scale * align(face, z)


def align(face: Tensor, picture: Tensor) -> Tensor:
    """``face`` ``[M, N, C]`` with the mean and the standard deviation that ``picture`` has over (tokens, channels),
    computed in fp32. A constant ``face`` (zero tokens) becomes the mean."""
    x, y = face.float(), picture.float()
    spread = (y.std((1, 2), keepdim=True) / (x.std((1, 2), keepdim=True) + ALIGN_EPS)).clamp_max(LARGEST_GAIN)
    aligned = (x - x.mean((1, 2), keepdim=True)) * spread + y.mean((1, 2), keepdim=True)
    return aligned.to(picture.dtype)


def project(attn: Attention, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q of ``x`` ``[M, N, C]``, k and v of ``context`` ``[M, L, D]``, each ``[M, N or L, heads, d]``."""
    return heads(attn, attn.to_q(x)), heads(attn, attn.to_k(context)), heads(attn, attn.to_v(context))


def heads(attn: Attention, x: Tensor) -> Tensor:
    """``[M, N, C]`` -> ``[M, N, heads, d]``."""
    return x.unflatten(-1, (attn.heads, -1))


def over_frames(x: Tensor, frames: int) -> Tensor:
    """``[B, ...]`` -> ``[B frames, ...]``, each sample's entry for each of its frames; a view where B is 1."""
    return x.unsqueeze(1).expand(-1, frames, *x.shape[1:]).reshape(-1, *x.shape[1:])
