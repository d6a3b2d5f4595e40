"""Attention over diffusers' projections: of a picture with itself and its references, and with its
conditions; and AnimateDiff's motion modules, over the frames of one pixel, with their table of positions."""

import math

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from stagecoach.models.common.attention import Attend
from stagecoach.models.dance_with_music.identity.attention import IdentityAdapter, heads, over_frames, project

ADAIN_EPS = 1e-5


def use_attend(module: nn.Module) -> None:
    """Give every attention inside ``module`` that has no processor of ours an ``Attend``; a recipe sets its kernel."""
    for attention in module.modules():
        if isinstance(attention, Attention) and not isinstance(attention.processor, nn.Module):
            attention.set_processor(Attend())


def plain_attention(attn: Attention, x: Tensor, context: Tensor) -> Tensor:
    """``x`` ``[M, N, C]`` reads ``context`` ``[M, L, D]`` -> ``[M, N, C]``."""
    return attn.to_out[0](attn.processor(*project(attn, x, context)))


def self_attention(attn: Attention, x: Tensor, reference: Tensor | None, given: Tensor | None) -> Tensor:
    """``x`` ``[B T, L, C]`` reads itself and, where bool ``given`` ``[B]``, ``reference`` ``[B, R L, C]``: keys and
    values of both side by side (reference-only control, as in arXiv 2311.17117, section 3.2).

    Those of the reference are made once for all frames. A sample without references has its own in their place: over
    repeated keys and values the softmax is what it is over single ones, so that no mask is needed.
    """
    if reference is None:
        return plain_attention(attn, x, x)
    k, v = (
        concat_reference(heads(attn, layer(x)), heads(attn, layer(reference)), given)
        for layer in (attn.to_k, attn.to_v)
    )
    return attn.to_out[0](attn.processor(heads(attn, attn.to_q(x)), k, v))


def cross_attention(attn: Attention, x: Tensor, context: Tensor, face: Tensor | None, scale: float) -> Tensor:
    """``x`` ``[B T, L, C]`` reads ``context`` ``[B T, N, D]`` and, through the identity adapter of this layer, ``face``
    ``[B, K, D]``."""
    q, k, v = project(attn, x, context)
    adapter = attn.processor
    if not isinstance(adapter, IdentityAdapter):
        return attn.to_out[0](adapter(q, k, v))
    z = adapter.attend(q, k, v)
    return attn.to_out[0](z if face is None else adapter(q, z, face, scale))


def concat_reference(own: Tensor, theirs: Tensor, given: Tensor) -> Tensor:
    """``own`` ``[B T, L, heads, d]`` and ``theirs`` ``[B, R L, heads, d]`` -> ``[B T, L + R L, heads, d]``, in which
    ``own`` stands in for the reference of samples that are not ``given`` one."""
    frames, times = own.shape[0] // theirs.shape[0], theirs.shape[1] // own.shape[1]
    theirs = theirs.unsqueeze(1).expand(-1, frames, -1, -1, -1)
    own = own.unflatten(0, (-1, frames))
    again = own.repeat(1, 1, times, 1, 1) if times > 1 else own
    return torch.cat([own, torch.where(given[:, None, None, None, None], theirs, again)], dim=2).flatten(0, 1)


def adain(x: Tensor, reference: Tensor, given: Tensor) -> Tensor:
    """``x`` ``[B T, L, C]`` with each channel's mean and standard deviation over the tokens taken from ``reference``
    ``[B, R L, C]`` where ``given`` (adaptive instance normalisation, arXiv 1703.06868, equation 8; in fp32)."""
    frames = x.shape[0] // reference.shape[0]
    y, theirs = x.float(), reference.float()
    mean, std = (over_frames(m, frames) for m in (theirs.mean(1, keepdim=True), theirs.std(1, keepdim=True)))
    moved = (y - y.mean(1, keepdim=True)) / (y.std(1, keepdim=True) + ADAIN_EPS) * std + mean
    return torch.where(over_frames(given, frames)[:, None, None], moved.to(x.dtype), x)


class Positions(nn.Module):
    """Sinusoids as AnimateDiff's, in place of diffusers' module of the same name. The table is computed, so that it is
    in no checkpoint and may be longer than that of the published weights."""

    def __init__(self, dim: int, length: int, device: torch.device | str) -> None:
        super().__init__()
        self.register_buffer("pe", position_table(dim, length).to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[M, T, C]`` -> the same."""
        return x + self.pe[:, : x.shape[1]].to(x.dtype)


def position_table(dim: int, length: int) -> Tensor:
    """fp32 ``[1, length, dim]``: sine in even, cosine in odd columns."""
    with torch.device("cpu"):
        rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
        angles = torch.arange(length).unsqueeze(1) * rate
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).unsqueeze(0)


def use_positions(unet: nn.Module, length: int, device: torch.device | str) -> None:
    """Give every motion module inside ``unet`` a table of ``length`` frames on ``device``."""
    for module in unet.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            for block in module.transformer_blocks:
                block.pos_embed = Positions(block.dim, length, device)


def temporal(module: AnimateDiffTransformer3D, x: Tensor, frames: int) -> Tensor:
    """``x`` ``[B T, C, h, w]`` -> the same. As AnimateDiff's and CHAMP's code, which the weights were trained with, the
    norm sees one frame at a time: what enters the attention of a frame does not depend on the clip around it.
    (diffusers' port takes its statistics over the whole clip.)"""
    c, h, w = x.shape[1:]
    y = module.norm(x).unflatten(0, (-1, frames)).permute(0, 3, 4, 1, 2)
    y = module.proj_in(y.reshape(-1, frames, c))
    for block in module.transformer_blocks:
        for norm, attention in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
            normed = block.pos_embed(norm(y))
            y = plain_attention(attention, normed, normed) + y
        y = block.ff(block.norm3(y)) + y
    y = module.proj_out(y).reshape(-1, h, w, frames, c).permute(0, 3, 4, 1, 2).contiguous()
    return y.reshape(x.shape) + x
