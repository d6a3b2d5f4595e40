"""The two kinds of FLUX block, run child by child, with what MoviePostProduction hangs into them.

Each does diffusers' arithmetic operation by operation, so that without references, or with adapters at their first
values, it equals diffusers' block bit for bit. Children keep diffusers' names; the block itself is never called.
"""

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor, nn

from stagecoach.models.common.attention import Attend
from stagecoach.models.common.lora import Path, adapted, has_lora
from stagecoach.models.movie_post_production.layout.assemble_attention import AssembleAttend
from stagecoach.models.movie_post_production.modulation import box_means, move_scalars, spread, temb_rows

Rotary = tuple[Tensor, Tensor]
"""cos and sin, fp32 ``[S, D]``."""
References = dict[str, Tensor | Rotary | dict | None]
"""What every block reads of the references; see ``network.MoviePostNetwork.gather``."""


class DoubleBlock(nn.Module):
    """A double-stream block: base, then the layout branch where there is a ``layout_out`` (W_b), then the feedback to
    the next block where there is a ``feedback``. ``own`` names modules of these and of ``modulation``."""

    def __init__(
        self, block: FluxTransformerBlock, own: dict[str, nn.Module], base_path: Path, second_ff: bool = False
    ) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self.layout_out, self.modulation, self.feedback = map(own.get, ("layout_out", "modulation", "feedback"))
        self.attend = Attend()
        self.assemble = AssembleAttend() if self.layout_out is not None else None
        self.path, self.second_ff = base_path, second_ff

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        layout: Tensor,
        temb: Tensor,
        feedback: Tensor | None,
        rotary: Rotary,
        refs: References,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """``image`` ``[B, T, d]``, ``text`` ``[B, L, d]``, ``layout`` ``[B, N, d]``, ``temb`` ``[B, d]``, ``feedback``
        ``[B, N, d]`` of the block before -> the three streams and the feedback for the next block."""
        row = self.path(self.norm1.linear)(self.norm1.silu(temb)).unsqueeze(1)
        text_row = self.path(self.norm1_context.linear)(self.norm1_context.silu(temb)).unsqueeze(1)
        moved = self._modulate(row, text_row, temb, feedback, refs) if self.modulation is not None else (row, text_row)
        image, text = self._base(image, text, *moved, rotary)
        if self.layout_out is not None:
            image, layout = self._layout(image, layout, temb, row, text_row, refs)
        if self.feedback is not None:
            feedback = self.feedback(box_means(image, refs["cover"]))
        return image, text, layout, feedback

    def _modulate(
        self, row: Tensor, text_row: Tensor, temb: Tensor, feedback: Tensor | None, refs: References
    ) -> tuple[Tensor, Tensor]:
        """AdaLN vectors ``[B, 1, 6 d]`` -> those of each image token, ``[B, T, 6 d]``, and of the text."""
        offset = self.modulation(refs["shared"], feedback)
        if self.modulation.scalars is None:
            rows = temb_rows(self.path(self.norm1.linear), temb, offset, refs["alpha"])
            return row + spread(refs["average"], rows), text_row
        scalars = offset * refs["alpha"].unsqueeze(-1).to(offset.dtype)
        over_text = (refs["among"].unsqueeze(1).to(offset.dtype) @ scalars)[..., 6:]  # text has no boxes: the mean
        return (move_scalars(row, spread(refs["average"], scalars[..., :6])), move_scalars(text_row, over_text))

    def _base(
        self, image: Tensor, text: Tensor, row: Tensor, text_row: Tensor, rotary: Rotary
    ) -> tuple[Tensor, Tensor]:
        """``row`` ``[B, T or 1, 6 d]``: shift, scale, gate of the attention, then of the feed-forward."""
        shift, scale, gate, ff_shift, ff_scale, ff_gate = row.chunk(6, dim=-1)
        text_shift, text_scale, text_gate, *text_ff = text_row.chunk(6, dim=-1)
        normed = self.norm1.norm(image) * (1 + scale) + shift
        text_normed = self.norm1_context.norm(text) * (1 + text_scale) + text_shift
        qkv, text_qkv = project(self.attn, normed, self.path), project_added(self.attn, text_normed, self.path)
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(text_qkv, qkv, strict=True))
        out = self.attend(apply_rotary_emb(q, rotary, sequence_dim=1), apply_rotary_emb(k, rotary, sequence_dim=1), v)
        text_out, out = out.to(q.dtype).split_with_sizes([text.shape[1], image.shape[1]], dim=1)
        image = image + gate * self.path(self.attn.to_out[0])(out.contiguous())
        image = self._feed_forward(self.norm2, self.ff, image, ff_shift, ff_scale, ff_gate, self.path)
        text = text + text_gate * self.path(self.attn.to_add_out)(text_out.contiguous())
        return image, self._feed_forward(self.norm2_context, self.ff_context, text, *text_ff, self.path)

    def _layout(
        self, image: Tensor, layout: Tensor, temb: Tensor, row: Tensor, text_row: Tensor, refs: References
    ) -> tuple[Tensor, Tensor]:
        """References attend with the tokens in their boxes, through the text stream's weights (InstanceAssemble)."""
        if has_lora(self.norm1.linear):
            row = self.norm1.linear(self.norm1.silu(temb)).unsqueeze(1)
        if has_lora(self.norm1_context.linear):
            text_row = self.norm1_context.linear(self.norm1_context.silu(temb)).unsqueeze(1)
        shift, scale, gate, *ff = row.chunk(6, dim=-1)
        own_shift, own_scale, own_gate, *own_ff = text_row.chunk(6, dim=-1)
        qkv = project(self.attn, self.norm1.norm(image) * (1 + scale) + shift, adapted)
        own_qkv = project_added(self.attn, self.norm1_context.norm(layout) * (1 + own_scale) + own_shift, adapted)
        own, out = assemble(self.assemble, own_qkv, qkv, refs)
        change = refs["strength"].to(out.dtype) * self.layout_out(self.attn.to_out[0](out))
        image = image + gate * change
        if self.second_ff:
            present = refs["present"].to(image.dtype)
            image = self._feed_forward(self.norm2, self.ff, image, *ff[:2], ff[2] * present, adapted)
        layout = layout + own_gate * self.attn.to_add_out(own)
        return image, self._feed_forward(self.norm2_context, self.ff_context, layout, *own_ff, adapted)

    @staticmethod
    def _feed_forward(
        norm: nn.Module, ff: nn.Module, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, path: Path
    ) -> Tensor:
        inner = norm(x) * (1 + scale) + shift
        for part in ff.net:
            inner = path(part)(inner)
        return x + gate * inner


class SingleBlock(nn.Module):
    """A single-stream block, with a layout branch where there is a ``layout_out``."""

    def __init__(self, block: FluxSingleTransformerBlock, own: dict[str, nn.Module], base_path: Path) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self.layout_out = own.get("layout_out")
        self.attend = Attend()
        self.assemble = AssembleAttend() if self.layout_out is not None else None
        self.path = base_path

    def forward(
        self, image: Tensor, text: Tensor, layout: Tensor, temb: Tensor, rotary: Rotary, refs: References
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``DoubleBlock.forward``, without feedback."""
        length = text.shape[1]
        hidden = torch.cat([text, image], dim=1)
        row = self.path(self.norm.linear)(self.norm.silu(temb)).unsqueeze(1)
        shift, scale, gate = row.chunk(3, dim=-1)
        normed = self.norm.norm(hidden) * (1 + scale) + shift
        inner = self.act_mlp(self.path(self.proj_mlp)(normed))
        q, k, v = project(self.attn, normed, self.path)
        out = self.attend(apply_rotary_emb(q, rotary, sequence_dim=1), apply_rotary_emb(k, rotary, sequence_dim=1), v)
        hidden = hidden + gate * self.path(self.proj_out)(torch.cat([out.to(q.dtype), inner], dim=2))
        text, image = hidden[:, :length], hidden[:, length:]
        if self.layout_out is not None:
            image, layout = self._layout(image, layout, temb, row, refs)
        return image, text, layout

    def _layout(
        self, image: Tensor, layout: Tensor, temb: Tensor, row: Tensor, refs: References
    ) -> tuple[Tensor, Tensor]:
        if has_lora(self.norm.linear):
            row = self.norm.linear(self.norm.silu(temb)).unsqueeze(1)
        shift, scale, gate = row.chunk(3, dim=-1)
        both = torch.cat([layout, image], dim=1)
        normed = self.norm.norm(both) * (1 + scale) + shift
        inner = self.act_mlp(self.proj_mlp(normed))
        sizes = [layout.shape[1], image.shape[1]]
        pairs = [x.split_with_sizes(sizes, dim=1) for x in project(self.attn, normed, adapted)]
        outs = assemble(self.assemble, *zip(*pairs, strict=True), refs)
        out = gate * self.proj_out(torch.cat([torch.cat(outs, dim=1), inner], dim=2))
        own, change = out.split_with_sizes(sizes, dim=1)
        return image + refs["strength"].to(change.dtype) * self.layout_out(change), layout + own


def project(attn: FluxAttention, x: Tensor, path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v ``[B, S, heads, D]`` of the image stream, normalised."""
    q, k, v = (path(layer)(x).unflatten(-1, (-1, attn.head_dim)) for layer in (attn.to_q, attn.to_k, attn.to_v))
    return attn.norm_q(q), attn.norm_k(k), v


def project_added(attn: FluxAttention, x: Tensor, path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the text stream."""
    layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    q, k, v = (path(layer)(x).unflatten(-1, (-1, attn.head_dim)) for layer in layers)
    return attn.norm_added_q(q), attn.norm_added_k(k), v


def assemble(
    attend: AssembleAttend, own: tuple[Tensor, ...], image: tuple[Tensor, ...], refs: References
) -> tuple[Tensor, Tensor]:
    """``own`` (q, k, v ``[B, N, heads, D]``) at the middles of their boxes and ``image`` ``[B, T, heads, D]`` where it
    is -> ``[B, N, heads D]`` and the share-weighted mean for each token ``[B, T, heads D]``."""
    (b, n), t = own[0].shape[:2], image[0].shape[1]
    rows = []
    for i, (mine, theirs) in enumerate(zip(own, image, strict=True)):
        mine = mine.flatten(0, 1)
        if i < 2:  # v is not rotated
            mine = apply_rotary_emb(mine.unsqueeze(0), refs["layout_rotary"], sequence_dim=1).squeeze(0)
            theirs = apply_rotary_emb(theirs, refs["image_rotary"], sequence_dim=1)
        rows.append(torch.cat([mine, theirs.flatten(0, 1)]))
    out = attend(*rows, refs["segments"], refs["share"])
    return out[: b * n].unflatten(0, (b, n)), out[b * n :].unflatten(0, (b, t))
