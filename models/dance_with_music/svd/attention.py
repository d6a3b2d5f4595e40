"""The transformers of Stable Video Diffusion, run child by child: space with face tokens, then time.

Each does diffusers' arithmetic operation by operation, so that with ``identity_scale`` 0 it equals diffusers' module
bit for bit. Children keep diffusers' names.
"""

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

from stagecoach.models.common.attention import Attend
from stagecoach.models.dance_with_music.identity.attention import IdentityAdapter, over_frames, project


class PlainProcessor(nn.Module):
    """diffusers' attention through the project's kernels; no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = Attend()

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        """``[M, N, C]``, context ``[M, L, D]`` or itself -> ``[M, N, C]``."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = project(attn, hidden_states, context)
        return out(attn, self.attend(q, k, v))


class SpatioTemporalTransformer(nn.Module):
    """One ``TransformerSpatioTemporalModel`` whose spatial cross-attentions have an identity adapter. The temporal ones
    see CLIP's embedding only (StableAnimator's code)."""

    def __init__(self, base: TransformerSpatioTemporalModel, cross_dim: int) -> None:
        super().__init__()
        for name, child in base.named_children():
            self.add_module(name, child)
        for block in self.transformer_blocks:
            block.attn1.set_processor(PlainProcessor())
            block.attn2.set_processor(IdentityAdapter(cross_dim, block.attn2.inner_dim, block.attn2.heads))
        for block in self.temporal_transformer_blocks:
            block.attn1.set_processor(PlainProcessor())
            block.attn2.set_processor(PlainProcessor())
        self.attend = Attend()

    def forward(self, x: Tensor, context: Tensor, tokens: Tensor, identity_scale: float, still: Tensor) -> Tensor:
        """``x`` ``[B T, C, h, w]``; ``context`` ``[B, L, D]``; ``tokens`` ``[B, K, D]``, the face's; ``still`` ``[B,
        T]``, 1 where a frame is a picture and not a part of a video -> ``[B T, C, h, w]``."""
        (rows, channels, h, w), (b, frames) = x.shape, still.shape
        residual, x = x, self.norm(x)
        x = self.proj_in(x.permute(0, 2, 3, 1).reshape(rows, h * w, channels))
        position = self._positions(b, frames, x)
        over_time, over_space = over_frames(context, h * w), over_frames(context, frames)
        for block, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            x = self._spatial(block, x, over_space, tokens, identity_scale)
            mixed = temporal(x + position, num_frames=frames, encoder_hidden_states=over_time)
            x = self.time_mixer(x_spatial=x, x_temporal=mixed, image_only_indicator=still)
        x = self.proj_out(x)
        return x.reshape(rows, h, w, channels).permute(0, 3, 1, 2).contiguous() + residual

    def _positions(self, b: int, frames: int, like: Tensor) -> Tensor:
        """``[B T, 1, C]``: embedding of each frame's position."""
        index = torch.arange(frames, device=like.device).repeat(b)
        return self.time_pos_embed(self.time_proj(index).to(like.dtype)).unsqueeze(1)

    def _spatial(
        self, block: BasicTransformerBlock, x: Tensor, context: Tensor, tokens: Tensor, identity_scale: float
    ) -> Tensor:
        x = block.attn1(block.norm1(x)) + x
        q, k, v = project(block.attn2, block.norm2(x), context)
        z = block.attn2.processor(q, self.attend(q, k, v), tokens, identity_scale)
        x = out(block.attn2, z) + x
        return block.ff(block.norm3(x)) + x


def out(attn: Attention, z: Tensor) -> Tensor:
    """The output projection: ``[M, N, C]`` -> same."""
    return attn.to_out[1](attn.to_out[0](z))
