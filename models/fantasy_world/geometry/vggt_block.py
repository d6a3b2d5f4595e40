"""The transformer block of VGGT (fused qkv, LayerScale), in two halves, with a learned modulation.

The modulation acts as in Wan: shift and scale on the normalised input, the gate on the output. Gates enter as 1 + gate
and all six start at 0, so that at first the block is VGGT's own. The published FantasyWorld, which ``published``
blocks compute, applies shift, scale and gate behind the MLP, has no gate on the attention, and norms with eps 1e-5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.models.common.attention import Attend
from stagecoach.models.fantasy_world.rope import rotate, rotate_halves

_LAYER_SCALE = 0.01


class Modulation(nn.Module):
    """Learned table plus, where there is one, a time projection ``[B, 6, d]`` -> six fp32 ``[B or 1, 1, d]``: shift,
    scale, gate of the attention, then of the MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 6, dim))

    def forward(self, time: Tensor | None = None) -> tuple[Tensor, ...]:
        table = self.table.float()
        return (table if time is None else table + time.float()).chunk(6, dim=1)


class PublishedModulation(Modulation):
    """Of six vectors the attention's gate is not used."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        nn.init.normal_(self.table, std=dim**-0.5)

    def forward(self, time: Tensor | None = None) -> tuple[Tensor, ...]:
        shift, scale, gate, *feed_forward = super().forward(time)
        return shift, scale, torch.zeros_like(gate), *feed_forward


class Unmodulated(nn.Module):
    """What leaves both halves of a published block as VGGT has them."""

    def forward(self, time: Tensor | None = None) -> tuple[float, ...]:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 1.0


class SelfAttention(nn.Module):
    """x + ls (1 + gate) Attention(LN(x) (1 + scale) + shift)."""

    def __init__(self, dim: int, heads: int, qk_norm: bool, published: bool = False) -> None:
        super().__init__()
        self.heads, eps = heads, 1e-5 if published else 1e-6
        self.rotate = rotate_halves if published else rotate
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm_q, self.norm_k = (
            (nn.LayerNorm(dim // heads, eps=eps), nn.LayerNorm(dim // heads, eps=eps))
            if qk_norm
            else (nn.Identity(), nn.Identity())
        )
        self.layer_scale = nn.Parameter(torch.full((dim,), _LAYER_SCALE))
        self.attend = Attend()

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, *rotation: Tensor) -> Tensor:
        """``x`` ``[B, T, d]``; ``rotation`` is nothing, or cos and sin ``[1, T, 1, d / heads]``, of a published block
        those of ``plane_rotation``."""
        q, k, v = self.qkv(modulate(self.norm(x), shift, scale)).unflatten(2, (3, self.heads, -1)).unbind(2)
        q, k = self.norm_q(q), self.norm_k(k)
        if rotation:
            q, k = self.rotate(q, rotation), self.rotate(k, rotation)
        return add_gated(x, self.proj(self.attend(q, k, v)), gate, self.layer_scale)


class MLP(nn.Module):
    """x + ls (1 + gate) MLP(LN(x) (1 + scale) + shift)."""

    def __init__(self, dim: int, ratio: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.fc1, self.fc2 = nn.Linear(dim, ratio * dim), nn.Linear(ratio * dim, dim)
        self.layer_scale = nn.Parameter(torch.full((dim,), _LAYER_SCALE))

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """``x`` ``[B, T, d]``; modulation fp32 ``[B or 1, 1, d]``."""
        inner = self.fc2(F.gelu(self.fc1(modulate(self.norm(x), shift, scale))))
        return add_gated(x, inner, gate, self.layer_scale)


class PublishedMLP(MLP):
    """x + gate ls (MLP(LN(x)) (1 + scale) + shift)."""

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        update = modulate(self.fc2(F.gelu(self.fc1(self.norm(x)))), shift, scale)
        return (x.float() + update.float() * self.layer_scale.float() * gate).type_as(x)


class VGGTBlock(nn.Module):
    """Both halves. The caller runs them one by one where something happens in between. A published one may go without
    modulation."""

    def __init__(
        self, dim: int, heads: int, mlp_ratio: int, qk_norm: bool, published: bool = False, modulated: bool = True
    ) -> None:
        super().__init__()
        modulation = PublishedModulation if published else Modulation
        self.modulation = modulation(dim) if modulated else Unmodulated()
        self.attention = SelfAttention(dim, heads, qk_norm, published)
        self.feed_forward = PublishedMLP(dim, mlp_ratio, eps=1e-5) if published else MLP(dim, mlp_ratio)

    def forward(self, x: Tensor, time: Tensor | None = None, *rotation: Tensor) -> Tensor:
        """``[B, T, d]`` -> same; ``time`` ``[B, 6, d]``, ``rotation`` nothing, or cos and sin."""
        first, second = split_modulation(self.modulation(time))
        return self.feed_forward(self.attention(x, *first, *rotation), *second)


def split_modulation(six: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Those of the attention and those of the feed-forward."""
    return six[:3], six[3:]


def modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """In fp32, back in the dtype of ``normed``."""
    return (normed.float() * (1 + scale) + shift).type_as(normed)


def add_gated(x: Tensor, update: Tensor, gate: Tensor, layer_scale: Tensor) -> Tensor:
    """The residual sum in fp32, back in the dtype of ``x``."""
    return (x.float() + update.float() * (layer_scale.float() * (1 + gate))).type_as(x)
