"""What the identity loss costs besides the network: decoding the windows and looking at the crops, counted by running
the helpers on the meta device."""

from __future__ import annotations

import functools

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Model

from stagecoach.data.movie_post_production.schema import LATENT_STRIDE
from stagecoach.models.family import ModuleCost
from stagecoach.models.movie_post_production.config import DinoConfig, MoviePostConfig, VaeConfig
from stagecoach.models.movie_post_production.identity.decode import Decoder, dino_config, vae_arguments

_ATTENTION = ("scaled_dot_product", "bmm")


def identity_costs(config: MoviePostConfig) -> list[ModuleCost]:
    """Rows of a stage with the identity loss, for one picture of ``config.image``: frozen, with gradients passing
    through. Helpers in ``base`` folders are taken to have the widths that the config states."""
    identity = config.losses.identity
    height, width = (side // LATENT_STRIDE for side in (config.image.height, config.image.width))
    if identity.decode == "crop":
        height, width = min(height, identity.window), min(width, identity.window)
    decodes = identity.crops if identity.decode == "crop" else 1
    vae = _decoder_cost(config.vae, config.backbone.latent_channels, height, width)
    dino = _dino_cost(config.dino, config.instance.dino_dim)
    return [_row("identity.vae", vae, decodes), _row("identity.dino", dino, identity.crops)]


def _row(name: str, cost: tuple[float, float, float], times: int) -> ModuleCost:
    linear, attention, kept = (times * value for value in cost)
    return ModuleCost(name, linear, attention, "passed", head=True, activation_bytes=kept)


@functools.cache
def _decoder_cost(config: VaeConfig, channels: int, height: int, width: int) -> tuple[float, float, float]:
    with torch.device("meta"):
        decoder = Decoder(AutoencoderKL(**vae_arguments(config, channels))).to(torch.bfloat16)
        latent = torch.empty(1, channels, height, width, requires_grad=True)
    return _measure(decoder, latent)


@functools.cache
def _dino_cost(config: DinoConfig, dim: int) -> tuple[float, float, float]:
    with torch.device("meta"):
        model = Dinov2Model(dino_config(config, dim)).to(torch.bfloat16).requires_grad_(False)
        pixels = torch.empty(1, 3, config.size, config.size, dtype=torch.bfloat16, requires_grad=True)
    return _measure(model, pixels)


def _measure(module: nn.Module, x: Tensor) -> tuple[float, float, float]:
    """FLOPs of linear layers and convolutions, those of attention, and the bytes that autograd keeps, weights aside."""
    weights = {id(p) for p in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in weights and not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = module(x)
    del out
    flops = {str(op): value for op, value in counter.get_flop_counts()["Global"].items()}
    attention = sum(value for op, value in flops.items() if any(name in op for name in _ATTENTION))
    return float(sum(flops.values()) - attention), float(attention), float(sum(kept.values()))
