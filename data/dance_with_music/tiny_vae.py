"""Stable Diffusion's VAE small enough for a laptop, with weights that are computed instead of trained.

As ``data.encoding.tiny_vae``: residual branches are zero, each halving of the picture is a principal component
analysis of 2 x 2 pixels, and the decoder is its least-squares inverse. The group norm before the last convolution
would spoil a linear map; two large constants of opposite sign and each feature's negative beside it make its mean 0
and its deviation a constant.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from stagecoach.data.encoding.tiny_vae import clear, least_squares_filters, principal_components

LATENT_CHANNELS = 4
WIDTHS = (8, 12, 20, 20)
KEPT = (6, 8, LATENT_CHANNELS)
"""Principal components kept at half, quarter and eighth resolution; a width holds twice as many and two constants."""

SMALL = 1e-3
"""Gain in front of a SiLU, so small that the SiLU is x / 2 to 3 digits more than bf16 has."""
LARGE = 100.0
"""The constants over the largest feature: the norm is a constant factor to 1e-4 / 2."""


@torch.no_grad()
def tiny_picture_vae(pictures: Tensor, seed: int) -> AutoencoderKL:
    """``pictures``: fp32 [N, 3, H, W] in -1..1, what the components and the scaling factor are fitted to."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=WIDTHS,
            down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
            up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
            latent_channels=LATENT_CHANNELS,
            layers_per_block=1,
            norm_num_groups=1,
            mid_block_add_attention=False,
        )
    vae.eval()
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            clear(module.conv2)
            if module.conv_shortcut is not None:
                _pass_on(module.conv_shortcut)
    levels = _fit_encoder(vae, pictures)
    _fit_decoder(vae, pictures, levels)
    vae.register_to_config(scaling_factor=float(1 / levels[-1].std()))
    return vae


def _fit_encoder(vae: AutoencoderKL, pictures: Tensor) -> list[Tensor]:
    """Returns the features at each resolution, [N, C, H / 2^k, W / 2^k], from the pictures to the latents."""
    encoder = vae.encoder
    _pass_on(encoder.conv_in)
    levels = [pictures]
    halvings = [block.downsamplers[0].conv for block in encoder.down_blocks if block.downsamplers]
    for convolution, kept in zip(halvings, KEPT, strict=True):
        features = levels[-1]
        patches = F.pixel_unshuffle(features, 2)
        components = principal_components(patches, kept)
        # diffusers pads below and to the right, so that the first tap is the upper left pixel.
        clear(convolution).weight[:kept, : features.shape[1], :2, :2] = components.view(kept, features.shape[1], 2, 2)
        levels.append(torch.einsum("kc,nchw->nkhw", components, patches))
    scale = _through_norm(encoder.conv_norm_out, halvings[-1], LATENT_CHANNELS, levels[-1])
    _pass_on(encoder.conv_out, scale, LATENT_CHANNELS)
    encoder.conv_out.bias[LATENT_CHANNELS:] = -30.0  # log-variance: the posterior is its mean
    _pass_on(vae.quant_conv)
    return levels


def _fit_decoder(vae: AutoencoderKL, pictures: Tensor, levels: list[Tensor]) -> None:
    """Level by level, the 3 x 3 filter on the doubled coarse features that comes nearest to the finer ones."""
    decoder = vae.decoder
    _pass_on(vae.post_quant_conv)
    _pass_on(decoder.conv_in)
    doublings = [block.upsamplers[0].conv for block in decoder.up_blocks if block.upsamplers]
    coarse = levels[-1]
    for convolution, fine in zip(doublings, reversed(levels[:-1]), strict=True):
        doubled = F.interpolate(coarse, scale_factor=2, mode="nearest")
        filters = least_squares_filters(doubled, fine)
        clear(convolution).weight[: fine.shape[1], : coarse.shape[1]] = filters
        coarse = F.conv2d(doubled, filters, padding=1)
    scale = _through_norm(decoder.conv_norm_out, doublings[-1], pictures.shape[1], coarse)
    _pass_on(decoder.conv_out, scale, pictures.shape[1])


def _through_norm(norm: nn.GroupNorm, before: nn.Conv2d, channels: int, features: Tensor) -> float:
    """Make group norm and SiLU a linear factor of the first ``channels`` of what ``before`` makes, and return what
    undoes it."""
    before.weight[channels : 2 * channels] = -before.weight[:channels]
    constant = LARGE * float(features.abs().max())
    before.bias[2 * channels], before.bias[2 * channels + 1] = constant, -constant
    norm.weight.fill_(SMALL)
    norm.bias.zero_()
    deviation = constant * (2 / norm.num_channels) ** 0.5
    return 2 * deviation / SMALL


def _pass_on(convolution: nn.Conv2d, factor: float = 1.0, channels: int | None = None) -> None:
    """Output channel k is input channel k."""
    weight = clear(convolution).weight
    index = torch.arange(min(channels or weight.shape[0], *weight.shape[:2]))
    weight[index, index, weight.shape[2] // 2, weight.shape[3] // 2] = factor
