"""The reference net of backbone ``champ``: a second UNet that shows the denoiser's self-attentions what the person
looks like (CHAMP, arXiv 2403.14781, section 3.2; Animate Anyone, arXiv 2311.17117, section 3.2)."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from stagecoach.models.dance_with_music.champ.attention import use_attend
from stagecoach.models.dance_with_music.champ.blocks import Layer, list_layers, run_layers
from stagecoach.models.dance_with_music.champ.unet import PARTS, embed_time
from stagecoach.models.dance_with_music.config import DanceConfig


def reference_patterns(config: DanceConfig) -> tuple[str, ...]:
    """Modules of the reference net that train, as patterns: all but the last up block, at whose end nothing gets a
    gradient any more (CHAMP freezes all of it)."""
    ups = tuple(f"up_blocks.{i}" for i in range(len(config.unet.widths) - 1))
    return tuple(f"reference_unet.{name}" for name in ("conv_in", "time_embedding", "down_blocks", "mid_block", *ups))


class ReferenceNet(nn.Module):
    """Parts of ``UNet2DConditionModel`` under diffusers' names; there is no output convolution. Of its last spatial
    transformer only what leads to the self-attention is run. ``dtype`` is that of activations."""

    def __init__(self, base: UNet2DConditionModel, dtype: torch.dtype) -> None:
        super().__init__()
        for name in PARTS:
            self.add_module(name, getattr(base, name))
        use_attend(self)
        self.dtype = dtype
        layers = list_layers(self)
        last = max(i for i, layer in enumerate(layers) if layer.reads)
        self.__dict__["layers"] = layers[: last + 1]

    def forward(self, latents: Tensor, embedding: Tensor) -> dict[str, Tensor]:
        """``latents`` ``[B, R, 4, h, w]``, scaled and without noise; CLIP's ``embedding`` ``[B, R, D]`` -> by name of
        the spatial transformer what its self-attention takes in, ``[B, R h' w', C]``, references one behind the other.
        """
        b, count = latents.shape[:2]
        level = torch.zeros(b * count, device=latents.device)
        reading = {
            "temb": embed_time(self, level, self.dtype),
            "frames": 1,
            "context": embedding.flatten(0, 1).unsqueeze(1).to(self.dtype),
            "face": None,
            "identity_scale": 0.0,
            "references": {},
            "given": None,
            "adain": False,
        }
        found: dict[str, Tensor] = {}

        def call(layer: Layer, *inputs: Any) -> Tensor | None:
            x, tokens = layer.read(*inputs, reading, stop=layer is self.layers[-1])
            if tokens is not None:
                found[layer.name] = tokens.unflatten(0, (b, count)).flatten(1, 2)
            return x

        run_layers(self.layers, self.conv_in(latents.flatten(0, 1).to(self.dtype)), call)
        return found
