"""The denoiser of backbone ``champ``: Stable Diffusion's UNet, from stage C on with AnimateDiff's motion modules, with
guidance behind its first convolution, the reference's keys and values, and face tokens (CHAMP, arXiv 2403.14781)."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from stagecoach.models.common.materialise import meta_model
from stagecoach.models.dance_with_music.champ.attention import use_attend, use_positions
from stagecoach.models.dance_with_music.champ.blocks import Layer, list_layers, run_layers
from stagecoach.models.dance_with_music.config import DanceConfig
from stagecoach.models.dance_with_music.identity.attention import IdentityAdapter, over_frames

PARTS = ("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block", "up_blocks")
TAIL = ("conv_norm_out", "conv_act", "conv_out")

ONE_KEY = (
    "denoising_unet.*.attentions.*.attn2.to_k.*",
    "reference_unet.*.attn2.to_q.*",
    "reference_unet.*.attn2.to_k.*",
    "reference_unet.*.transformer_blocks.*.norm2.*",
)
"""Parameters without a gradient because CLIP's embedding is one token, and a softmax over one key is 1 (``*`` for any
run of characters). The denoiser's queries read the face tokens too, so they do get one."""


def image_base(config: DanceConfig) -> UNet2DConditionModel:
    """Stable Diffusion's UNet on the meta device, where it costs nothing and lends its parts."""
    return meta_model(UNet2DConditionModel, config.unet.unet2d())


def motion_base(config: DanceConfig) -> UNetMotionModel:
    """The same with motion modules."""
    return meta_model(UNetMotionModel, motion_arguments(config))


def motion_arguments(config: DanceConfig) -> dict[str, Any]:
    """Arguments of ``diffusers.UNetMotionModel``."""
    motion = config.motion
    return {
        **config.unet.motion(),
        "motion_num_attention_heads": motion.heads,
        "motion_max_seq_length": motion.max_frames,
        "use_motion_mid_block": motion.mid,
        "temporal_transformer_layers_per_block": motion.layers,
        "temporal_transformer_layers_per_mid_block": motion.layers,
    }


class DenoisingUnet(nn.Module):
    """Parts of ``UNet2DConditionModel`` or ``UNetMotionModel`` under diffusers' names, each spatial ``attn2`` with its
    ``processor`` for the face. ``dtype`` is that of activations, ``device`` that of the table of positions."""

    def __init__(
        self,
        config: DanceConfig,
        base: UNet2DConditionModel | UNetMotionModel,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        for name in (*PARTS, *TAIL):
            self.add_module(name, getattr(base, name))
        self.max_frames, self.adain, self.dtype = config.motion.max_frames, config.reference.adain, dtype
        self.moves = isinstance(base, UNetMotionModel)
        use_positions(self, config.motion.max_frames, device)
        use_identity(self, config.unet.cross_dim)
        use_attend(self)
        # Only a way to run what is registered above under diffusers' names.
        self.__dict__["layers"] = list_layers(self)

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        conditions: dict,
        guidance: Tensor | None,
        tokens: Tensor | None,
        references: dict[str, Tensor],
    ) -> Tensor:
        """``x`` fp32 ``[B, T, 4, h, w]``, noisy latents; ``level`` fp32 ``[B]``, their timestep; ``guidance`` ``[B, T,
        C, h, w]``, scaled and dropped already, or None; ``tokens`` ``[B, K, D]`` of the face, or None; ``references``
        ``{layer: [B, R L, C]}`` as ``ReferenceNet`` gives them, or none. Returns v, fp32 ``[B, T, 4, h, w]``.

        Raises ``ValueError`` where the clip is longer than the table of positions.
        """
        b, frames = x.shape[:2]
        if frames > self.max_frames:
            raise ValueError(
                f"a clip of {frames} frames was given and motion.max_frames is {self.max_frames}, "
                "expected no more; raise motion.max_frames, whose table is computed and costs nothing"
            )
        given = conditions["embedding_given"][:, None, None].to(self.dtype)
        reading = {
            "temb": self._embed(level, frames),
            "frames": frames,
            "context": over_frames(conditions["embedding"][:, :1].to(self.dtype) * given, frames),
            "face": None if tokens is None else tokens.to(self.dtype),
            "identity_scale": conditions["identity_scale"],
            "references": references,
            "given": conditions["reference_given"],
            "adain": self.adain and bool(references),
        }
        x = self.conv_in(x.flatten(0, 1).to(self.dtype))
        if guidance is not None:
            x = x + guidance.flatten(0, 1).to(self.dtype)
        x = run_layers(self.layers, x, lambda layer, *inputs: layer(*inputs, reading))
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return x.unflatten(0, (b, frames)).float()

    def _embed(self, level: Tensor, frames: int) -> Tensor:
        """``[B]`` -> ``[B T, E]``, repeated before or after as diffusers does, since rounding depends on it."""
        if self.moves:
            return over_frames(embed_time(self, level, self.dtype), frames)
        return embed_time(self, over_frames(level, frames), self.dtype)

    def recompute_units(self) -> list[Layer]:
        """A resnet with what follows it, each; downsamplers are not worth it."""
        return [layer for layer in self.layers if isinstance(layer.parts[0], ResnetBlock2D)]


def use_identity(unet: nn.Module, cross_dim: int) -> None:
    """Give every spatial cross-attention inside ``unet`` its identity adapter."""
    for module in unet.modules():
        if isinstance(module, Transformer2DModel):
            for block in module.transformer_blocks:
                block.attn2.set_processor(IdentityAdapter(cross_dim, block.attn2.inner_dim, block.attn2.heads))


def embed_time(unet: nn.Module, level: Tensor, dtype: torch.dtype) -> Tensor:
    """Timesteps ``[B]`` -> ``[B, E]``."""
    return unet.time_embedding(unet.time_proj(level).to(dtype))
