"""FLUX's VAE small enough for a laptop, with weights that are computed instead of trained.

As in ``data.encoding.tiny_vae`` the residual branches are zero and what is left of the encoder is linear: each halving
of the picture is a principal component analysis of 2 x 2 pixels; the decoder is its least-squares inverse. Group norm
and SiLU at the end of both are made linear: features come in pairs x, -x beside a pair of large constants c, -c. So a
group has mean 0 and, but for (x / c)^2, always the same deviation; and silu(x) - silu(-x) = x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from stagecoach.data.encoding.tiny_vae import clear, least_squares_filters, principal_components

LATENT_CHANNELS = 16
KEPT = (8, LATENT_CHANNELS, LATENT_CHANNELS)
"""Principal components kept at half, quarter and eighth resolution."""
SHIFT, SCALE = 0.1159, 0.3611
"""FLUX's. Latents are fitted to be of mean 0 and deviation 1 after them, as FLUX's are, nearly."""
LARGE = 100.0
"""The constants over the largest feature: what makes group norm a constant factor, to 1e-4."""
LOG_VARIANCE = -12.0
"""Of the posterior, everywhere: a draw differs from the mode by 0.0025."""


@torch.no_grad()
def tiny_flux_vae(pixels: Tensor, seed: int) -> AutoencoderKL:
    """``pixels``: fp32 [N, 3, H, W] in -1..1, sides multiples of 8, what components and scales are fitted to."""
    channels = (*KEPT, 2 * LATENT_CHANNELS + 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=1,
            latent_channels=LATENT_CHANNELS,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
            shift_factor=SHIFT,
            scaling_factor=SCALE,
        )
    vae.eval()
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            clear(module.conv2)
            if module.conv_shortcut is not None:
                _pass_on(module.conv_shortcut)
    levels = _fit_encoder(vae, pixels)
    _fit_decoder(vae, levels)
    return vae


def _fit_encoder(vae: AutoencoderKL, pixels: Tensor) -> list[Tensor]:
    """Returns the features at each resolution [N, C, H / 2^k, W / 2^k], from the pixels to the components, whose mean
    and deviation by channel the latents are freed of."""
    encoder = vae.encoder
    _pass_on(encoder.conv_in)
    levels = [pixels]
    halvings = [module for module in encoder.modules() if isinstance(module, Downsample2D)]
    for module, kept in zip(halvings, KEPT, strict=True):
        features = levels[-1]
        patches = F.pixel_unshuffle(features, 2)
        components = principal_components(patches, kept)
        weight = clear(module.conv).weight
        weight[:kept, : features.shape[1], :2, :2] = components.view(kept, features.shape[1], 2, 2)
        levels.append(torch.einsum("kc,nchw->nkhw", components, patches))
    latents = levels[-1]
    unscaled = _mirror(encoder.down_blocks[-1].resnets[0].conv_shortcut, encoder.conv_norm_out, latents)
    out = clear(encoder.conv_out)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    _read_mirrored(out, unscaled / (std * SCALE))
    out.bias[:LATENT_CHANNELS] = SHIFT - mean / (std * SCALE)
    out.bias[LATENT_CHANNELS:] = LOG_VARIANCE
    weight = clear(vae.decoder.conv_in).weight
    index = torch.arange(LATENT_CHANNELS)
    weight[index, index, 1, 1] = std * SCALE
    vae.decoder.conv_in.bias[:LATENT_CHANNELS] = mean - SHIFT * std * SCALE
    return levels


def _fit_decoder(vae: AutoencoderKL, levels: list[Tensor]) -> None:
    """Level by level, the 3 x 3 filter on the doubled coarse features that comes nearest to the finer ones."""
    decoder = vae.decoder
    doublings = [module for module in decoder.modules() if isinstance(module, Upsample2D)]
    coarse = levels[-1]
    for module, fine in zip(doublings, reversed(levels[:-1]), strict=True):
        doubled = F.interpolate(coarse, scale_factor=2, mode="nearest")
        filters = least_squares_filters(doubled, fine)
        clear(module.conv).weight[: fine.shape[1], : coarse.shape[1]] = filters
        coarse = F.conv2d(doubled, filters, padding=1)
    unscaled = _mirror(decoder.up_blocks[-1].resnets[0].conv_shortcut, decoder.conv_norm_out, coarse)
    _read_mirrored(clear(decoder.conv_out), torch.full((3,), unscaled))


def _mirror(shortcut: nn.Conv2d, norm: nn.GroupNorm, features: Tensor) -> float:
    """Make the 1 x 1 shortcut give x, -x, c, -c and zeros. Returns the factor that group norm divides by."""
    count, constant = features.shape[1], LARGE * float(features.abs().max())
    weight = clear(shortcut).weight
    index = torch.arange(count)
    weight[index, index, 0, 0], weight[count + index, index, 0, 0] = 1, -1
    shortcut.bias[2 * count], shortcut.bias[2 * count + 1] = constant, -constant
    return constant * (2 / norm.num_channels) ** 0.5


def _read_mirrored(convolution: nn.Conv2d, factors: Tensor) -> None:
    """Output k is ``factors[k]`` times feature k of a mirrored input behind a SiLU."""
    index = torch.arange(len(factors))
    convolution.weight[index, index, 1, 1] = factors
    convolution.weight[index, len(factors) + index, 1, 1] = -factors


def _pass_on(convolution: nn.Conv2d) -> None:
    """Output channel k is input channel k."""
    weight = clear(convolution).weight
    index = torch.arange(min(weight.shape[:2]))
    middle = weight.shape[2] // 2
    weight[index, index, middle, middle] = 1
