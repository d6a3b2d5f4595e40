"""Per-token AdaLN: offsets that a reference adds to the modulation of the tokens in its box, and the bridges over which
a block tells the next one what it found there.

FLUX's AdaLN makes its vectors as linear(silu(temb)). In ``temb`` space a reference i of block b moves the embedding:
y_ib = temb + alpha_i (s_i + D_ib + F_ib), with s_i shared by the blocks, D_ib = P_b s_i, F_ib the feedback of the block
before, and FLUX's own frozen linear makes the vectors of y_ib (XVerse does so per text token, arXiv 2506.21416). In
``scalar12`` space, the guide's, a map of each block makes twelve numbers of s_i + D_ib + F_ib.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.models.common.layers import OwnLinear
from stagecoach.models.movie_post_production.config import FeedbackConfig, ModulationConfig

SCALARS = 12
"""(shift, scale, gate) of image attention, image feed-forward, text attention, text feed-forward."""


class ModulationHead(nn.Module):
    """z -> s = W2 silu(W1 z + b1) + b2. W1 starts Xavier and W2 at zero: both at zero would be a dead end."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden, self.out = OwnLinear(dim, dim), OwnLinear(dim, dim, "zero")

    def forward(self, z: Tensor) -> Tensor:
        """``[B, N, d]`` -> ``[B, N, d]``."""
        return self.out(F.silu(self.hidden(z)))


class BlockModulation(nn.Module):
    """The part of one block: s -> s + P_b s + F_b in ``temb`` space, twelve numbers of it in ``scalar12`` space."""

    def __init__(self, config: ModulationConfig, dim: int) -> None:
        super().__init__()
        if config.rank is None:
            self.projection: nn.Module = OwnLinear(dim, dim)
        else:
            self.projection = nn.Sequential(
                OwnLinear(dim, config.rank, bias=False), OwnLinear(config.rank, dim, bias=False)
            )
        self.scalars = OwnLinear(dim, SCALARS) if config.space == "scalar12" else None

    def forward(self, shared: Tensor, feedback: Tensor | None) -> Tensor:
        """``shared`` and ``feedback`` ``[B, N, d]`` -> ``[B, N, d]`` or ``[B, N, 12]``."""
        offset = shared + self.projection(shared)
        if feedback is not None:
            offset = offset + feedback
        return offset if self.scalars is None else self.scalars(offset)


def temb_rows(linear: nn.Module, temb: Tensor, offset: Tensor, alpha: Tensor) -> Tensor:
    """What moving ``temb`` ``[B, d]`` by alpha times ``offset`` ``[B, N, d]`` changes in linear(silu(temb)): ``[B, N,
    6 d]``.

    The linear takes silu(y) - silu(temb) next to a row of zeros, whose output (the bias) is taken away: exactly zero
    for an offset of zero, so that a new adapter is FLUX to the last bit; two products of different shapes would not be.
    """
    base = temb.float().unsqueeze(1)
    change = F.silu(base + alpha.unsqueeze(-1) * offset.float()) - F.silu(base)
    rows = linear(F.pad(change, (0, 0, 1, 0)).to(temb.dtype))
    return rows[:, 1:] - rows[:, :1]


def spread(share: Tensor, rows: Tensor) -> Tensor:
    """Rows of references ``[B, N, C]`` on the tokens that they cover, averaged where several do: ``share`` fp32 ``[B,
    N, T]`` -> ``[B, T, C]``, zero where none covers."""
    return share.transpose(1, 2).to(rows.dtype) @ rows


def move_scalars(vectors: Tensor, offsets: Tensor) -> Tensor:
    """``vectors`` ``[B, 1, 6 d]`` (shift, scale, gate twice) and ``offsets`` ``[B, T, 6]`` -> ``[B, T, 6 d]``: shifts
    and scales have theirs added, gates are multiplied by 1 plus theirs."""
    moved = []
    for i, (vector, offset) in enumerate(zip(vectors.chunk(6, dim=-1), offsets.split(1, dim=-1), strict=True)):
        moved.append(vector * (1 + offset) if i % 3 == 2 else vector + offset)
    return torch.cat(moved, dim=-1)


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
