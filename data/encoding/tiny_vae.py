"""VAEs small enough for a laptop, with weights that are computed instead of trained.

A random VAE loses what a picture shows, and training one takes minutes. So the residual branches are zero and what is
left of the encoder is linear: each halving of the picture is a principal component analysis of 2 x 2 pixels, each
halving of time a mean. The decoder is its least-squares inverse. The architecture, and every file, is a real one's.

The norm and the SiLU before the last convolution would spoil a linear map. Large constants make the norm a constant
factor. Behind it a small gain keeps the SiLU where it is x / 2 (``wan``, ``sd``), or features come in pairs x, -x,
since silu(x) - silu(-x) = x (``flux``, ``sd3``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

Layout = Literal["wan", "flux", "sd3", "sd"]

SMALL = 1e-3
"""Gain in front of a SiLU, so small that the SiLU is x / 2 to 3 digits more than bf16 has."""
LARGE = 100.0
"""The constants over the largest feature: what makes a norm a constant factor, to 1e-4."""
LOG_VARIANCE = {"flux": -12.0, "sd3": -12.0, "sd": -30.0}
"""Of the posterior, everywhere: -12 makes a draw differ from the mode by 0.0025, -30 by nothing."""


@dataclass(frozen=True)
class _Layout:
    """``kept``: principal components kept at half, quarter and eighth resolution, the last of which are the latents.
    ``shift``, ``scale``: the real VAE's, after which latents are fitted to be of mean 0 and deviation 1."""

    kept: tuple[int, int, int]
    config: dict[str, Any]
    shift: float = 0.0
    scale: float = 1.0


def _kl(widths: Sequence[int], **more: Any) -> dict[str, Any]:
    return {
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 1,
        "mid_block_add_attention": False,
        **more,
    }


def _mirrored(shift: float, scale: float) -> _Layout:
    more = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    config = _kl((8, 16, 16, 34), shift_factor=shift, scaling_factor=scale, **more)
    return _Layout((8, 16, 16), config, shift, scale)


LAYOUTS: dict[str, _Layout] = {
    "wan": _Layout(
        (8, 16, 16),
        {
            "base_dim": 8,
            "z_dim": 16,
            "dim_mult": [1, 2, 4, 4],
            "num_res_blocks": 1,
            "temperal_downsample": [False, True, True],
        },
    ),
    "flux": _mirrored(0.1159, 0.3611),
    "sd3": _mirrored(0.0609, 1.5305),
    # A width holds its components, as many negatives and two constants.
    "sd": _Layout((6, 8, 4), _kl((8, 12, 20, 20), latent_channels=4)),
}


@torch.no_grad()
def tiny_vae(pictures: Tensor, seed: int, layout: Layout = "wan") -> AutoencoderKL | AutoencoderKLWan:
    """Fit a VAE of the architecture of Wan2.1, FLUX.1, Stable Diffusion 3 or Stable Diffusion.

    Args:
        pictures: fp32 [N, 3, H, W] in -1..1, sides multiples of 8; components and scales are fitted to them.
        seed: for the weights behind which nothing passes.
    """
    chosen = LAYOUTS[layout]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = (AutoencoderKLWan if layout == "wan" else AutoencoderKL)(**chosen.config)
    vae.eval()
    for module in vae.modules():
        _make_identity(module)
    encoder, decoder = vae.encoder, vae.decoder
    _pass_on(encoder.conv_in)
    _pass_on(decoder.conv_in)
    if layout in ("wan", "sd"):
        _pass_on(vae.quant_conv)
        _pass_on(vae.post_quant_conv)
    halvings, doublings = _resampling(vae)
    levels = _halve(halvings, pictures, chosen.kept)
    restored = _double(doublings, levels)
    latents = levels[-1]
    fit = {"wan": _fit_wan, "sd": _fit_sd}.get(layout, _fit_mirrored)
    fit(vae, halvings[-1], doublings[-1], latents, restored, chosen)
    if layout != "wan":
        encoder.conv_out.bias[chosen.kept[-1] :] = LOG_VARIANCE[layout]
    return vae


def _resampling(vae: AutoencoderKL | AutoencoderKLWan) -> tuple[list[nn.Conv2d], list[nn.Conv2d]]:
    """The convolutions that halve and those that follow a doubling, all zero; what goes on in time is made a mean and
    a repetition."""
    if isinstance(vae, AutoencoderKL):
        halvings = [block.downsamplers[0].conv for block in vae.encoder.down_blocks if block.downsamplers]
        doublings = [block.upsamplers[0].conv for block in vae.decoder.up_blocks if block.upsamplers]
    else:
        down = [block for block in vae.encoder.down_blocks if isinstance(block, WanResample)]
        up = [block.upsamplers[0] for block in vae.decoder.up_blocks if block.upsamplers is not None]
        for block in (block for block in down if hasattr(block, "time_conv")):
            weight = clear(block.time_conv).weight
            weight[:, :, 1:, 0, 0] = torch.eye(len(weight))[..., None] / 2
        for block in (block for block in up if hasattr(block, "time_conv")):
            weight = clear(block.time_conv).weight
            weight[:, :, -1, 0, 0] = torch.eye(weight.shape[1]).repeat(2, 1)
        halvings, doublings = ([block.resample[1] for block in blocks] for blocks in (down, up))
    return [clear(convolution) for convolution in halvings], [clear(convolution) for convolution in doublings]


def _halve(halvings: list[nn.Conv2d], pictures: Tensor, kept: Sequence[int]) -> list[Tensor]:
    """Fit the encoder. Returns the features at each resolution [N, C, H / 2^k, W / 2^k], from the pictures to the
    latents."""
    levels = [pictures]
    for convolution, count in zip(halvings, kept, strict=True):
        channels, patches = levels[-1].shape[1], F.pixel_unshuffle(levels[-1], 2)
        components = principal_components(patches, count)
        # diffusers pads below and to the right, so that the first tap is the upper left pixel.
        convolution.weight[:count, :channels, :2, :2] = components.view(count, channels, 2, 2)
        levels.append(torch.einsum("kc,nchw->nkhw", components, patches))
    return levels


def _double(doublings: list[nn.Conv2d], levels: list[Tensor]) -> Tensor:
    """Fit the decoder: level by level, the 3 x 3 filter on the doubled coarse features that comes nearest to the finer
    ones. Returns what it makes of the latents."""
    coarse = levels[-1]
    for convolution, fine in zip(doublings, reversed(levels[:-1]), strict=True):
        doubled = F.interpolate(coarse, scale_factor=2, mode="nearest")
        filters = least_squares_filters(doubled, fine)
        convolution.weight[: fine.shape[1], : coarse.shape[1]] = filters
        coarse = F.conv2d(doubled, filters, padding=1)
    return coarse


def _fit_wan(
    vae: AutoencoderKLWan, halving: nn.Conv2d, doubling: nn.Conv2d, latents: Tensor, restored: Tensor, layout: _Layout
) -> None:
    """A large constant in the last channel fixes the RMS norm."""
    sides = (vae.encoder, halving, latents, layout.kept[-1]), (vae.decoder, doubling, restored, None)
    for side, before, features, channels in sides:
        constant = LARGE * float(features.abs().max())
        before.bias[-1] = constant
        side.norm_out.gamma.fill_(SMALL)
        _pass_on(side.conv_out, 2 * constant / (SMALL * side.norm_out.gamma.numel() ** 0.5), channels)
    vae.register_to_config(latents_mean=latents.mean((0, 2, 3)).tolist(), latents_std=latents.std((0, 2, 3)).tolist())


def _fit_sd(
    vae: AutoencoderKL, halving: nn.Conv2d, doubling: nn.Conv2d, latents: Tensor, restored: Tensor, layout: _Layout
) -> None:
    """Two large constants of opposite sign, and each feature's negative, make the mean of the group 0 and its deviation
    a constant."""
    for side, before, features in ((vae.encoder, halving, latents), (vae.decoder, doubling, restored)):
        count, norm = features.shape[1], side.conv_norm_out
        before.weight[count : 2 * count] = -before.weight[:count]
        constant = LARGE * float(features.abs().max())
        before.bias[2 * count], before.bias[2 * count + 1] = constant, -constant
        norm.weight.fill_(SMALL)
        norm.bias.zero_()
        _pass_on(side.conv_out, 2 * constant * (2 / norm.num_channels) ** 0.5 / SMALL, count)
    vae.register_to_config(scaling_factor=float(1 / latents.std()))


def _fit_mirrored(
    vae: AutoencoderKL, halving: nn.Conv2d, doubling: nn.Conv2d, latents: Tensor, restored: Tensor, layout: _Layout
) -> None:
    """Features come in pairs behind the last shortcut; the latents' mean and deviation become those that shift and
    scale undo."""
    encoder, decoder, channels = vae.encoder, vae.decoder, layout.kept[-1]
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    unscaled = _mirror(encoder.down_blocks[-1].resnets[0].conv_shortcut, encoder.conv_norm_out, latents)
    _read_mirrored(clear(encoder.conv_out), unscaled / (std * layout.scale))
    encoder.conv_out.bias[:channels] = layout.shift - mean / (std * layout.scale)
    index = torch.arange(channels)
    clear(decoder.conv_in).weight[index, index, 1, 1] = std * layout.scale
    decoder.conv_in.bias[:channels] = mean - layout.shift * std * layout.scale
    unscaled = _mirror(decoder.up_blocks[-1].resnets[0].conv_shortcut, decoder.conv_norm_out, restored)
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


def _make_identity(module: nn.Module) -> None:
    """Close a block's residual branch; where its width changes, pass on the channels that both sides have."""
    if isinstance(module, WanResidualBlock | ResnetBlock2D):
        clear(module.conv2)
        if isinstance(module.conv_shortcut, nn.Conv2d | nn.Conv3d):
            _pass_on(module.conv_shortcut)
    elif isinstance(module, WanAttentionBlock):
        clear(module.proj)


def clear(convolution: nn.Module) -> Any:
    """Set weight and bias to 0; returns the convolution."""
    convolution.weight.zero_()
    convolution.bias.zero_()
    return convolution


def _pass_on(convolution: nn.Module, factor: float = 1.0, channels: int | None = None) -> None:
    """Output channel k is input channel k, at the present position and time (the last tap of a causal kernel)."""
    weight = clear(convolution).weight
    index = torch.arange(min(channels or weight.shape[0], *weight.shape[:2]))
    middle = tuple(size // 2 for size in weight.shape[-2:])
    weight[(index, index, *([-1] if weight.ndim == 5 else []), *middle)] = factor
