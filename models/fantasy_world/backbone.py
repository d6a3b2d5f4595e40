"""The frozen Wan2.1 transformer, taken apart where FantasyWorld reaches into it.

diffusers' ``WanTransformer3DModel`` runs from patches to velocity in one call. Here its parts stand alone: the stem
(patches, time, text and image embedding), blocks that stop between attention and feed-forward, and the output head.
Each does diffusers' arithmetic operation by operation, in the same dtypes (norms and residual sums in fp32), so that
the parts together equal the whole bit for bit.
"""

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn

from stagecoach.models.fantasy_world.config import PATCH
from stagecoach.models.fantasy_world.rope import Rotation

HALVES = ("modulation", "attention", "feed_forward")
"""Parts of a ``SplitWanBlock``, which hold tensors under the names that they have in the whole block."""


class BlockModulation(nn.Module):
    """The table of a Wan block: time projection ``[B, 6, d]`` -> shift, scale, gate of the attention, then of the
    feed-forward, each fp32 ``[B, 1, d]``."""

    def __init__(self, table: nn.Parameter) -> None:
        super().__init__()
        self.scale_shift_table = table

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        return (self.scale_shift_table + time.float()).chunk(6, dim=1)


class AttentionHalf(nn.Module):
    """Self-attention and text cross-attention of a Wan block."""

    def __init__(self, block: WanTransformerBlock) -> None:
        super().__init__()
        self.norm1, self.attn1 = block.norm1, block.attn1
        self.norm2, self.attn2 = block.norm2, block.attn2

    def forward(
        self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, text: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """``x`` ``[B, T, d]``, ``text`` ``[B, L, d]``, modulation fp32 ``[B, 1, d]``, tables fp32 ``[1, T, 1, D]``."""
        x = self.self_attention(x, shift, scale, gate, cos, sin)
        return x + self.attn2(self.norm2(x.float()).type_as(x), text, None, None)

    def self_attention(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """As ``forward``, without the text."""
        normed = (self.norm1(x.float()) * (1 + scale) + shift).type_as(x)
        return (x.float() + self.attn1(normed, None, None, (cos, sin)) * gate).type_as(x)


class FeedForwardHalf(nn.Module):
    """Feed-forward of a Wan block."""

    def __init__(self, block: WanTransformerBlock) -> None:
        super().__init__()
        self.norm3, self.ffn = block.norm3, block.ffn

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """``x`` ``[B, T, d]``, modulation fp32 ``[B, 1, d]``."""
        normed = (self.norm3(x.float()) * (1 + scale) + shift).type_as(x)
        return (x.float() + self.ffn(normed).float() * gate).type_as(x)


class SplitWanBlock(nn.Module):
    """A Wan block in two halves, each called through ``__call__`` with positional tensors. The block itself is never
    called: ``open`` runs it up to the feed-forward, ``close`` the rest."""

    def __init__(self, block: WanTransformerBlock) -> None:
        super().__init__()
        self.modulation = BlockModulation(block.scale_shift_table)
        self.attention = AttentionHalf(block)
        self.feed_forward = FeedForwardHalf(block)

    def open(
        self, x: Tensor, context: Tensor, projection: Tensor, rotation: Rotation
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``x`` ``[B, T, d]``, ``context`` ``[B, L, d]``, time ``projection`` ``[B, 6, d]`` -> ``x`` after both
        attentions, and what ``close`` needs."""
        shift, scale, gate, *feed_forward = self.modulation(projection)
        return self.attention(x, shift, scale, gate, context, *rotation), tuple(feed_forward)

    def close(self, x: Tensor, carried: tuple[Tensor, ...]) -> Tensor:
        """``x`` ``[B, T, d]`` and what ``open`` carried over -> the block's output."""
        return self.feed_forward(x, *carried)


class Stem(nn.Module):
    """Patches and conditions of the backbone."""

    def __init__(self, base: WanTransformer3DModel) -> None:
        super().__init__()
        self.patch_embedding = base.patch_embedding
        self.condition_embedder = base.condition_embedder

    def forward(
        self, latent: Tensor, timestep: Tensor, text: Tensor, image_states: Tensor | None
    ) -> tuple[Tensor, ...]:
        """``latent`` ``[B, C, f, 2h, 2w]``, ``timestep`` ``[B]`` in 0..1000, ``text`` ``[B, L, text_dim]``, CLIP's
        ``image_states`` ``[B, 257, image_dim]`` -> patch tokens ``[B, f h w, d]``, time ``[B, d]``, its projection
        ``[B, 6, d]`` and the context ``[B, (257 +) L, d]``."""
        x = self.patch_embedding(latent).flatten(2).transpose(1, 2).contiguous()
        time, projection, context, image = self.condition_embedder(timestep, text, image_states)
        if image is not None:
            context = torch.cat([image, context], dim=1)
        return x, time, projection.unflatten(1, (6, -1)), context


class OutputHead(nn.Module):
    """Tokens to velocity."""

    def __init__(self, base: WanTransformer3DModel) -> None:
        super().__init__()
        self.scale_shift_table = base.scale_shift_table
        self.norm_out, self.proj_out = base.norm_out, base.proj_out

    def forward(self, x: Tensor, time: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """``[B, f h w, d]``, ``[B, d]`` -> ``[B, C, f, 2h, 2w]`` for ``grid`` = (f, h, w)."""
        shift, scale = (self.scale_shift_table + time.unsqueeze(1)).chunk(2, dim=1)
        x = self.proj_out((self.norm_out(x.float()) * (1 + scale) + shift).type_as(x))
        x = x.unflatten(2, (PATCH, PATCH, -1)).unflatten(1, grid)  # [B, f, h, w, 2, 2, C]
        return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def base_name(split: int, name: str) -> str | None:
    """Where a tensor of the network stands in diffusers' model; None for one of ours. ``split``: the base's block that
    the first IRG layer starts from."""
    kind, _, inner = name.partition(".")
    if kind in ("stem", "out"):
        return inner
    if kind not in ("pcb", "irg"):
        return None
    index, _, inner = inner.partition(".")
    if kind == "irg":
        index, inner = int(index) + split, inner.partition(".")[2]
    half, _, rest = inner.partition(".")
    return f"blocks.{index}.{rest if half in HALVES else inner}"
