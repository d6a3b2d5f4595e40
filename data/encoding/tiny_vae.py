"""A Wan VAE small enough for a laptop, with weights that are computed instead of trained.

A random VAE loses what a picture shows, and training one takes minutes. So the residual branches are zero and what is
left of the encoder is linear: each halving of the image is a principal component analysis of 2 x 2 pixels, each halving
of time a mean. The decoder is its least-squares inverse. The architecture, and so every file, is that of Wan's VAE.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock
from torch import Tensor, nn

LATENT_CHANNELS = 16
BASE_DIM = 8
DIM_MULT = (1, 2, 4, 4)
KEPT = (8, 16, LATENT_CHANNELS)
"""Principal components kept at half, quarter and eighth resolution."""

SMALL = 1e-3
"""Gain in front of a SiLU, so small that the SiLU is x / 2 to 3 digits more than bf16 has."""
LARGE = 100.0
"""The constant channel over the largest feature: what makes an RMS norm a constant factor, to 1e-4 / 2."""


@torch.no_grad()
def tiny_vae(frames: Tensor, seed: int) -> AutoencoderKLWan:
    """``frames``: fp32 [N, 3, H, W] in -1..1, what the components and the latents' mean and deviation are fitted to."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=BASE_DIM,
            z_dim=LATENT_CHANNELS,
            dim_mult=list(DIM_MULT),
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        )
    vae.eval()
    for module in vae.modules():
        _make_identity(module)
    levels = _fit_encoder(vae, frames)
    _fit_decoder(vae, frames, levels)
    latents = levels[-1]
    vae.register_to_config(latents_mean=latents.mean((0, 2, 3)).tolist(), latents_std=latents.std((0, 2, 3)).tolist())
    return vae


def _make_identity(module: nn.Module) -> None:
    """Close a block's residual branch; where its width changes, pass on the channels that both sides have."""
    if isinstance(module, WanResidualBlock):
        clear(module.conv2)
        if not isinstance(module.conv_shortcut, nn.Identity):
            _pass_on(module.conv_shortcut)
    elif isinstance(module, WanAttentionBlock):
        clear(module.proj)


def _fit_encoder(vae: AutoencoderKLWan, frames: Tensor) -> list[Tensor]:
    """Returns the features at each resolution, [N, C, H / 2^k, W / 2^k], from the frames themselves to the latents."""
    encoder = vae.encoder
    _pass_on(encoder.conv_in)
    levels = [frames]
    halvings = [block for block in encoder.down_blocks if isinstance(block, WanResample)]
    for block, kept in zip(halvings, KEPT, strict=True):
        features = levels[-1]
        patches = F.pixel_unshuffle(features, 2)
        components = principal_components(patches, kept)
        convolution = clear(block.resample[1])
        convolution.weight[:kept, : features.shape[1], :2, :2] = components.view(kept, features.shape[1], 2, 2)
        levels.append(torch.einsum("kc,nchw->nkhw", components, patches))
        if hasattr(block, "time_conv"):
            middle = clear(block.time_conv).weight
            middle[:, :, 1:, 0, 0] = torch.eye(len(middle))[..., None] / 2
    scale = _through_norm(encoder.norm_out, halvings[-1].resample[1], float(levels[-1].abs().max()))
    _pass_on(encoder.conv_out, scale, LATENT_CHANNELS)
    _pass_on(vae.quant_conv)
    return levels


def _fit_decoder(vae: AutoencoderKLWan, frames: Tensor, levels: list[Tensor]) -> None:
    """Level by level, the 3 x 3 filter on the doubled coarse features that comes nearest to the finer ones."""
    decoder = vae.decoder
    _pass_on(vae.post_quant_conv)
    _pass_on(decoder.conv_in)
    doublings = [block.upsamplers[0] for block in decoder.up_blocks if block.upsamplers is not None]
    coarse = levels[-1]
    for block, fine in zip(doublings, reversed(levels[:-1]), strict=True):
        if hasattr(block, "time_conv"):
            weight = clear(block.time_conv).weight
            weight[:, :, -1, 0, 0] = torch.eye(weight.shape[1]).repeat(2, 1)
        convolution = clear(block.resample[1])
        doubled = F.interpolate(coarse, scale_factor=2, mode="nearest-exact")
        filters = least_squares_filters(doubled, fine)
        convolution.weight[: fine.shape[1], : coarse.shape[1]] = filters
        coarse = F.conv2d(doubled, filters, padding=1)
    scale = _through_norm(decoder.norm_out, doublings[-1].resample[1], float(coarse.abs().max()))
    _pass_on(decoder.conv_out, scale)


def principal_components(patches: Tensor, kept: int) -> Tensor:
    """[N, C, H, W] -> the ``kept`` leading eigenvectors of the channels' covariance, [kept, C], signs fixed. About
    zero, not the mean: the filters have no bias, so that grey (0) stays 0."""
    flat = patches.transpose(0, 1).flatten(1).double()
    vectors = torch.linalg.eigh(flat @ flat.T / flat.shape[1]).eigenvectors.flip(-1)[:, :kept].T
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return (vectors * largest.sign()).float()


def least_squares_filters(coarse: Tensor, fine: Tensor) -> Tensor:
    """Filters [K, C, 3, 3] that make [N, K, H, W] of [N, C, H, W]; slightly damped."""
    size = coarse.shape[1] * 9
    normal, right = torch.zeros(size, size, dtype=torch.double), torch.zeros(size, fine.shape[1], dtype=torch.double)
    for x, y in zip(coarse, fine, strict=True):
        columns = F.unfold(x[None], 3, padding=1)[0].double()
        normal += columns @ columns.T
        right += columns @ y.flatten(1).double().T
    normal += 1e-5 * normal.diagonal().mean() * torch.eye(size)
    return torch.linalg.solve(normal, right).T.float().view(fine.shape[1], coarse.shape[1], 3, 3)


def _through_norm(norm: nn.Module, before: nn.Conv2d, largest: float) -> float:
    """Make RMS norm and SiLU a linear factor: a large constant in the last channel fixes the norm, a small gain keeps
    the SiLU where it is x / 2. Returns what undoes the factor."""
    constant = LARGE * largest
    before.bias[-1] = constant
    norm.gamma.fill_(SMALL)
    return 2 * constant / (SMALL * norm.gamma.numel() ** 0.5)


def clear(convolution: nn.Module) -> nn.Module:
    """Set weight and bias to 0; returns the convolution."""
    convolution.weight.zero_()
    convolution.bias.zero_()
    return convolution


def _pass_on(convolution: nn.Module, factor: float = 1.0, channels: int | None = None) -> None:
    """Output channel k is input channel k, at the present place and time (the last tap of a causal kernel)."""
    weight = clear(convolution).weight
    count = channels or min(weight.shape[:2])
    index = torch.arange(min(count, *weight.shape[:2]))
    weight[index, index, -1, weight.shape[3] // 2, weight.shape[4] // 2] = factor
