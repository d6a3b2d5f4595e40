"""3-D rotary position embedding of the video stream, the geometry stream and the attention between them.

All of them use Wan's split of a head (44 of 128 dimensions for time, 42 for height, 42 for width; adjacent pairs,
theta 10000), which diffusers computes in fp64 once and keeps as fp32 tables. A special token has no position in the
image: its rotation is the identity (cos 1, sin 0), so that its queries and keys keep their length.
"""

from collections.abc import Iterable

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn

from stagecoach.models.fantasy_world.config import PATCH, SPECIAL_TOKENS

Rotation = tuple[Tensor, Tensor]
"""cos and sin, fp32 ``[1, T, 1, head_dim]``, each number twice (for the two of a pair)."""

_LONGEST = 1024
_PLANE_BASE = 100.0


class RotaryTables(nn.Module):
    """Rotations of both streams for heads of several sizes; made once per forward and used by all layers."""

    def __init__(self, head_dims: Iterable[int]) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {str(size): WanRotaryPosEmbed(size, (1, PATCH, PATCH), _LONGEST) for size in sorted(set(head_dims))}
        )

    def video(self, head_dim: int, latent: Tensor) -> Rotation:
        """For the f h w patch tokens of ``latent`` ``[B, C, f, 2h, 2w]``, in row-major order."""
        return self.tables[str(head_dim)](latent)

    def geometry(self, head_dim: int, latent: Tensor) -> Rotation:
        """For the f (5 + h w) tokens of the geometry stream."""
        return tuple(
            with_special_tokens(table, latent.shape[2], value)
            for table, value in zip(self.video(head_dim, latent), (1.0, 0.0), strict=True)
        )


def with_special_tokens(table: Tensor, frames: int, value: float) -> Tensor:
    """``[1, f h w, 1, D]`` -> ``[1, f (5 + h w), 1, D]`` with ``value`` for the special tokens of each latent frame."""
    table = table.unflatten(1, (frames, -1))
    special = table.new_full((1, frames, SPECIAL_TOKENS, *table.shape[3:]), value)
    return torch.cat([special, table], 2).flatten(1, 2)


def plane_rotation(head_dim: int, latent: Tensor) -> Rotation:
    """VGGT's 2-D rotation (base 100) for the f (5 + h w) tokens: half of a head turns with the row, half with the
    column, both from 1; all frames alike. cos and sin fp32 ``[1, T, 1, head_dim / 2]`` for ``rotate_halves``."""
    f, h, w = latent.shape[2], latent.shape[3] // PATCH, latent.shape[4] // PATCH
    places = torch.cartesian_prod(*(torch.arange(1.0, size + 1, device=latent.device) for size in (h, w)))
    places = nn.functional.pad(places, (0, 0, SPECIAL_TOKENS, 0))  # [P, 2]; special tokens at 0, which does not turn
    frequency = _PLANE_BASE ** -(torch.arange(head_dim // 4, device=latent.device) / (head_dim // 4))
    angle = (places[..., None] * frequency).flatten(1).repeat(f, 1)[None, :, None]
    return angle.cos(), angle.sin()


def rotate_halves(x: Tensor, rotation: Rotation) -> Tensor:
    """``rotate`` by a ``plane_rotation``: the pairs are number i of the first and of the second half of an axis."""
    cos, sin = (part.unflatten(-1, (2, -1)) for part in rotation)
    a, b = x.float().unflatten(-1, (2, 2, -1)).unbind(-2)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -2).flatten(-3).type_as(x)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the adjacent pairs of ``x`` ``[B, T, heads, D]`` in fp32; the dtype of ``x`` is kept, and the backward keeps
    the tables only."""
    cos, sin = rotation[0][..., 0::2], rotation[1][..., 0::2]
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).type_as(x)
