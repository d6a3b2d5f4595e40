"""StableAnimator's denoiser: Stable Video Diffusion with guidance behind its first convolution, the reference's latents
next to the noisy ones, and face tokens in its spatial cross-attentions (arXiv 2411.17697 and its code)."""

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from stagecoach.data.dance_with_music.schema import LATENT_CHANNELS
from stagecoach.models.common.constants import constant
from stagecoach.models.common.materialise import meta_model
from stagecoach.models.dance_with_music.config import DanceConfig, UnetConfig
from stagecoach.models.dance_with_music.svd.attention import SpatioTemporalTransformer

VAE_SCALE = 0.18215
"""Scaling factor of SVD's VAE. Cached latents are scaled; SVD takes its reference unscaled."""

_BLOCKS = ("down_blocks.*", "mid_block", "up_blocks.*")

ATTENTIONS = tuple(f"denoising_unet.{block}.attentions" for block in _BLOCKS)
"""Modules that hold every parameter whose name contains ``attentions``, the identity adapters among them: what
StableAnimator trains."""

TEMPORAL = tuple(
    f"denoising_unet.{block}.{part}"
    for block in _BLOCKS
    for part in (
        "attentions.*.temporal_transformer_blocks",
        "attentions.*.time_pos_embed",
        "attentions.*.time_mixer",
        "resnets.*.temporal_res_block",
        "resnets.*.time_mixer",
    )
)
"""Modules that connect frames: what stage C trains."""

ONE_KEY = tuple(
    f"denoising_unet.*.attentions.*.{part}"
    for part in (
        "temporal_transformer_blocks.*.norm2.*",
        "temporal_transformer_blocks.*.attn2.to_q.*",
        "temporal_transformer_blocks.*.attn2.to_k.*",
        "transformer_blocks.*.attn2.to_k.*",
    )
)
"""Parameters that get no gradient because CLIP's embedding is one token, and a softmax over one key is 1 (``*`` for any
run of characters). The queries of the spatial ones read the face tokens too, so they do get one."""


def svd_base(config: UnetConfig) -> UNetSpatioTemporalConditionModel:
    """The whole UNet on the meta device, where it costs nothing and lends its parts."""
    return meta_model(UNetSpatioTemporalConditionModel, config.spatio_temporal())


class SvdDenoiser(nn.Module):
    """Parts of ``UNetSpatioTemporalConditionModel`` under diffusers' names, each spatial ``attn2`` with its
    ``processor`` for the face. ``dtype`` is that of activations."""

    def __init__(self, config: DanceConfig, base: UNetSpatioTemporalConditionModel, dtype: torch.dtype) -> None:
        super().__init__()
        for name, child in base.named_children():
            self.add_module(name, child)
        for block in self._blocks():
            attentions = getattr(block, "attentions", None)
            for i, attention in enumerate(attentions or ()):
                attentions[i] = SpatioTemporalTransformer(attention, config.unet.cross_dim)
        self.time_ids = (config.diffusion.fps, config.diffusion.motion_bucket, config.diffusion.reference_noise)
        self.dtype = dtype

    def _blocks(self) -> list[nn.Module]:
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    def forward(self, x: Tensor, level: Tensor, conditions: dict, guidance: Tensor, tokens: Tensor) -> Tensor:
        """``x`` fp32 ``[B, T, 4, h, w]``, noisy latents scaled for the network; ``level`` fp32 ``[B]``, 0.25 ln sigma;
        ``guidance`` ``[B, T, C, h, w]``, scaled and dropped already; ``tokens`` ``[B, K, D]``. Of ``conditions`` the
        first reference counts. Returns the raw output, fp32 ``[B, T, 4, h, w]``."""
        b, frames = x.shape[:2]
        given = conditions["embedding_given"][:, None, None].to(self.dtype)
        context = conditions["embedding"][:, :1].to(self.dtype) * given
        still = torch.zeros(b, frames, dtype=self.dtype, device=x.device)
        rest = (context, tokens.to(self.dtype), conditions["identity_scale"], still)
        temb = self._embed(level).repeat_interleave(frames, dim=0, output_size=b * frames)

        x = self.conv_in(beside_reference(x, conditions).flatten(0, 1).to(self.dtype))
        x = x + guidance.flatten(0, 1).to(self.dtype)
        skips = [x]
        for block in self.down_blocks:
            for i, resnet in enumerate(block.resnets):
                x = self._layer(block, i, resnet(x, temb, still), rest)
                skips.append(x)
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
                skips.append(x)
        first, *others = self.mid_block.resnets
        x = first(x, temb, still)
        for i, resnet in enumerate(others):
            x = resnet(self._layer(self.mid_block, i, x, rest), temb, still)
        for block in self.up_blocks:
            for i, resnet in enumerate(block.resnets):
                x = self._layer(block, i, resnet(torch.cat([x, skips.pop()], dim=1), temb, still), rest)
            for upsampler in block.upsamplers or ():
                # Sides that do not halve evenly come back as they went down.
                x = upsampler(x, skips[-1].shape[2:])
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return x.unflatten(0, (b, frames)).float()

    def _layer(self, block: nn.Module, i: int, x: Tensor, rest: tuple) -> Tensor:
        """The transformer behind a resnet, where the block has any."""
        attentions = getattr(block, "attentions", None)
        return x if attentions is None else attentions[i](x, *rest)

    def _embed(self, level: Tensor) -> Tensor:
        """``[B, 4 C]`` of the noise level, and of frame rate, motion bucket and noise of the reference."""
        embedded = self.time_embedding(self.time_proj(level).to(self.dtype))
        ids = constant(self.time_ids, level.device).repeat(len(level))
        return embedded + self.add_embedding(self.add_time_proj(ids).reshape(len(level), -1).to(embedded.dtype))

    def recompute_units(self) -> list[nn.Module]:
        """Resnets and transformers, each by itself."""
        return [
            unit for block in self._blocks() for unit in (*block.resnets, *(getattr(block, "attentions", None) or ()))
        ]


def beside_reference(x: Tensor, conditions: dict) -> Tensor:
    """Noisy latents ``[B, T, 4, h, w]`` -> ``[B, T, 8, h, w]``: next to each frame the first reference, unscaled; zeros
    where none is given."""
    reference = conditions["references"][:, :1].to(x.dtype) / VAE_SCALE
    reference = torch.where(conditions["reference_given"][:, None, None, None, None], reference, 0.0)
    return torch.cat([x, reference.expand(-1, x.shape[1], LATENT_CHANNELS, -1, -1)], dim=2)
