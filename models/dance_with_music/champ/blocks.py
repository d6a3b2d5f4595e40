"""The layers that a UNet of Stable Diffusion's kind is made of, run child by child as diffusers runs them.

Without references and identity each equals diffusers' to the last bit, but for the motion modules, which are
AnimateDiff's. A ``Layer`` only refers to the modules that it
runs: they stay where diffusers has them, under its names, and what ZeRO partitions is they.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from stagecoach.models.dance_with_music.champ.attention import adain, cross_attention, self_attention, temporal

Reading = dict[str, Any]
"""What the layers of a forward read besides the picture:

- ``temb`` ``[B T, E]``, the embedded time; ``frames``: T; ``context`` ``[B T, 1, D]``, CLIP's embedding;
- ``face`` ``[B, K, D]``, face tokens, or None, and ``identity_scale``;
- ``references`` ``{layer: [B, R L, C]}``, empty for none; ``given`` bool ``[B]``; ``adain``: bool.
"""


class Layer(nn.Module):
    """A resnet and what follows it before the next: spatial transformer, motion module, upsampler; or a downsampler.
    ``name`` is that of the spatial transformer; ``takes``: reads an earlier layer's output too; ``leaves``: its own is
    kept for that."""

    def __init__(
        self, parts: list[nn.Module], name: str | None = None, takes: bool = False, leaves: bool = False
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.name, self.takes, self.leaves = name, takes, leaves

    @property
    def reads(self) -> bool:
        """Whether it has a spatial transformer."""
        return any(isinstance(part, Transformer2DModel) for part in self.parts)

    def forward(self, x: Tensor, skip: Tensor | None, size: torch.Size | None, reading: Reading) -> Tensor:
        """``x`` ``[B T, C, h, w]``, ``skip`` where the layer takes one -> the same kind. ``size``: height and width
        after an upsampler."""
        return self.read(x, skip, size, reading)[0]

    def read(
        self, x: Tensor, skip: Tensor | None, size: torch.Size | None, reading: Reading, stop: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """The output, and what the spatial self-attention takes in, ``[B T, L, C]``, None where there is none. With
        ``stop`` nothing is run after that, and the output is None."""
        tokens = None
        x = torch.cat([x, skip], dim=1) if self.takes else x
        for part in self.parts:
            if isinstance(part, Transformer2DModel):
                x, tokens = spatial(part, x, self.name, reading, stop)
                if stop:
                    break
            elif isinstance(part, AnimateDiffTransformer3D):
                x = temporal(part, x, reading["frames"])
            elif isinstance(part, ResnetBlock2D):
                x = part(x, reading["temb"])
            else:
                x = part(x, size) if isinstance(part, Upsample2D) else part(x)
        return x, tokens


def spatial(
    module: Transformer2DModel, x: Tensor, name: str, reading: Reading, stop: bool
) -> tuple[Tensor | None, Tensor]:
    """``x`` ``[B T, C, h, w]`` -> the same, and the normalised tokens that self-attention takes in, ``[B T, L, C]``."""
    rows, _, h, w = x.shape
    y = module.proj_in(module.norm(x)).permute(0, 2, 3, 1).flatten(1, 2)
    (block,) = module.transformer_blocks
    tokens = block.norm1(y)
    if stop:
        return None, tokens
    reference, given = reading["references"].get(name), reading["given"]
    own = adain(tokens, reference, given) if reading["adain"] else tokens
    y = self_attention(block.attn1, own, reference, given) + y
    y = cross_attention(block.attn2, block.norm2(y), reading["context"], reading["face"], reading["identity_scale"]) + y
    y = block.ff(block.norm3(y)) + y
    y = module.proj_out(y.reshape(rows, h, w, -1).permute(0, 3, 1, 2).contiguous())
    return y + x, tokens


def list_layers(unet: nn.Module) -> list[Layer]:
    """The layers of a UNet in diffusers' layout, in the order in which they run. Each up layer takes what the newest
    layer that still has it has left."""
    layers = []
    for i, block in enumerate(unet.down_blocks):
        layers += _block(block, f"down_blocks.{i}", leaves=True)
        layers += [Layer([sampler], leaves=True) for sampler in block.downsamplers or ()]
    first, *others = unet.mid_block.resnets
    layers.append(Layer([first, *_behind(unet.mid_block, 0)], "mid_block.attentions.0"))
    for i, resnet in enumerate(others):
        layers.append(Layer([resnet, *_behind(unet.mid_block, i + 1)], f"mid_block.attentions.{i + 1}"))
    for i, block in enumerate(unet.up_blocks):
        group = _block(block, f"up_blocks.{i}", takes=True)
        group[-1].parts.extend(block.upsamplers or ())
        layers += group
    return layers


def run_layers(layers: list[Layer], x: Tensor, call: Callable[..., Tensor]) -> Tensor:
    """Pass ``x``, the output of the first convolution, through all layers. ``call`` runs one: of the layer and the
    first three arguments of its forward it makes the layer's output."""
    skips = [x]
    for layer in layers:
        skip = skips.pop() if layer.takes else None
        # Sides that do not halve evenly come back as they went down.
        x = call(layer, x, skip, skips[-1].shape[2:] if skips else None)
        if layer.leaves:
            skips.append(x)
    return x


def _block(block: nn.Module, prefix: str, takes: bool = False, leaves: bool = False) -> list[Layer]:
    return [
        Layer([resnet, *_behind(block, i)], f"{prefix}.attentions.{i}", takes, leaves)
        for i, resnet in enumerate(block.resnets)
    ]


def _behind(block: nn.Module, i: int) -> list[nn.Module]:
    """Spatial transformer and motion module behind resnet ``i``, where there are such."""
    kinds = (getattr(block, kind, None) or () for kind in ("attentions", "motion_modules"))
    return [modules[i] for modules in kinds if i < len(modules)]
