"""Guidance by type: a condition that is rendered from music and poses, and the network that reads it.

A type of your own takes a render function, a network and a name::

    def render_hands(given, config):  # [B, T, 42, h, w]
        maps = render_heatmaps(given.xy[:, :, 92:], given.conf[:, :, 92:], config.m2p.resolution, config.losses.sigma)
        return resize_maps(maps, *given.latent)

    register_guidance("hands", GuidanceType(
        make=lambda config: GuidanceEncoder(42, config.unet.widths[0], config.guidance.widths, config.guidance.heads),
        render=render_hands, from_pose=True))

and then ``guidance: {types: [pose, hands]}`` in a recipe. The network takes ``[N, ...]``, the condition with batch and
frames folded, and returns ``[N, unet.widths[0], h, w]`` with zeros at its start.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.data.dance_with_music.drawing import dwpose_pen, render_skeletons, stable_animator_pen
from stagecoach.data.dance_with_music.schema import KEYPOINTS, LATENT_STRIDE
from stagecoach.models.dance_with_music.config import DanceConfig
from stagecoach.models.dance_with_music.guidance.encoders import (
    GuidanceEncoder,
    MusicGuidance,
    MusicMapGuidance,
    PoseNet,
)
from stagecoach.models.dance_with_music.music_to_pose.heatmaps import axis_marginals, gaussian_marginals, heatmap, outer


@dataclass(frozen=True)
class GuidanceInput:
    """What conditions are made of. ``xy`` ``[B, T, 134, 2]`` divided by width and height, ``conf`` ``[B, T, 134]`` in
    0..1: true points, or those of a prediction, whose ``logits`` (MusicToPose's output) then say how sure it is of
    their positions. ``music`` ``[B, T, Dm]``; ``height`` and ``width`` of the picture in pixels; ``music_map``
    ``[B, T, C, H, W]``, where there are pictures of the music."""

    xy: Tensor
    conf: Tensor
    logits: Mapping[str, Tensor] | None
    music: Tensor
    height: int
    width: int
    music_map: Tensor | None = None

    @property
    def latent(self) -> tuple[int, int]:
        """(h, w)."""
        return self.height // LATENT_STRIDE, self.width // LATENT_STRIDE


@dataclass(frozen=True)
class GuidanceType:
    """``make``: the network of a config. ``render``: its condition ``[B, T, ...]``, fp32. ``from_pose``: it depends on
    the pose, so that true and predicted conditions differ and are mixed."""

    make: Callable[[DanceConfig], nn.Module]
    render: Callable[[GuidanceInput, DanceConfig], Tensor]
    from_pose: bool


GUIDANCE_TYPES: dict[str, GuidanceType] = {}


def register_guidance(name: str, guidance: GuidanceType) -> None:
    """Make ``name`` a word for ``guidance.types``. Raises ``ValueError`` where it is taken, or no module can be called
    so."""
    if name in GUIDANCE_TYPES:
        raise ValueError(
            f"guidance type {name!r} exists already, expected a new name; types are {', '.join(GUIDANCE_TYPES)}"
        )
    if not name.isidentifier():
        raise ValueError(f"guidance type {name!r} is no name for a module, expected letters, digits and underscores")
    GUIDANCE_TYPES[name] = guidance


def guidance_type(name: str) -> GuidanceType:
    """Raises ``ValueError`` for an unknown one."""
    if name not in GUIDANCE_TYPES:
        raise ValueError(
            f"guidance.types names {name!r}, expected among {', '.join(GUIDANCE_TYPES)}; register_guidance adds one"
        )
    return GUIDANCE_TYPES[name]


class GuidanceBank(nn.Module):
    """One encoder per type of the config; their outputs are added. All are zero at first."""

    def __init__(self, config: DanceConfig) -> None:
        super().__init__()
        self.chunk = config.guidance.chunk
        self.encoders = nn.ModuleDict({name: guidance_type(name).make(config) for name in config.guidance.types})

    def forward(self, conditions: dict[str, Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Conditions ``[B, T, ...]`` by type -> ``[B, T, C, h, w]`` in their dtype.

        ``size`` (h, w) of the latents: what an encoder gives at another one (``music`` always has the M2P's resolution)
        is resized to it. An encoder takes ``config.guidance.chunk`` frames of all samples at a time: how often it is
        called depends on T alone, and under recompute no more than one chunk's activations exist.
        """
        total = None
        for name, encoder in self.encoders.items():
            parts = [
                encoder(part.flatten(0, 1)).unflatten(0, part.shape[:2])
                for part in conditions[name].split(self.chunk, dim=1)
            ]
            added = resize_maps(torch.cat(parts, dim=1), *(size or parts[0].shape[-2:]))
            total = added if total is None else total + added
        return total


def resize_maps(maps: Tensor, height: int, width: int) -> Tensor:
    """``[..., R, S]`` -> ``[..., h, w]`` in the dtype of ``maps``, bilinear, antialiased where it shrinks."""
    if maps.shape[-2:] == (height, width):
        return maps
    down, across = (_resize_matrix(n, m, maps) for n, m in zip(maps.shape[-2:], (height, width), strict=True))
    return down @ maps @ across.transpose(0, 1)


def _resize_matrix(inputs: int, outputs: int, like: Tensor) -> Tensor:
    """``[outputs, inputs]``: one axis of PyTorch's antialiased bilinear resize, as products have a deterministic
    backward and an outer product can be resized before it is multiplied out."""
    eye = torch.eye(inputs, device=like.device)[None, None]
    return F.interpolate(eye, (outputs, inputs), mode="bilinear", antialias=True)[0, 0].to(like.dtype)


def render_pose_maps(given: GuidanceInput, config: DanceConfig) -> Tensor:
    """``[B, T, 134, h, w]``: a heatmap per point, so scaled that a true point far from the edge peaks at its
    confidence, and a predicted one the lower, the wider it is spread."""
    resolution, sigma, tau = config.m2p.resolution, config.losses.sigma, config.m2p.temperature
    peak = given.conf.float() * (2 * math.pi * sigma**2)
    if given.logits is not None and "logits" in given.logits:
        return resize_maps(heatmap(given.logits, tau), *given.latent) * peak[..., None, None]
    x, y = (
        axis_marginals(given.logits, tau)
        if given.logits is not None
        else gaussian_marginals(given.xy, resolution, sigma)
    )
    (h, w), n = given.latent, x.shape[-1]
    x, y = x @ _resize_matrix(n, w, x).transpose(0, 1), y @ _resize_matrix(n, h, y).transpose(0, 1)
    return outer(x * peak.unsqueeze(-1), y)


def render_dwpose(given: GuidanceInput, config: DanceConfig) -> Tensor:
    """``[B, T, 3, H, W]`` in 0..1, as CHAMP's ``guidance_encoder_dwpose`` was trained with."""
    pen = dwpose_pen(given.height, given.width)
    return render_skeletons(given.xy, given.conf, given.height, given.width, pen)


def render_stable_animator(given: GuidanceInput, config: DanceConfig) -> Tensor:
    """``[B, T, 3, H, W]`` in -1..1, as StableAnimator's PoseNet was trained with."""
    pen = stable_animator_pen(given.height, given.width)
    return 2 * render_skeletons(given.xy, given.conf, given.height, given.width, pen) - 1


def render_music_maps(given: GuidanceInput, config: DanceConfig) -> Tensor:
    """``[B, T, C, h, w]``: pictures of the music, or its rows with each number all over a channel."""
    if config.guidance.map_channels is None:
        return given.music.float()[..., None, None].expand(-1, -1, -1, *given.latent)
    if given.music_map is None:
        raise ValueError(
            f"no maps of music given, expected {config.guidance.map_channels} channels per frame for guidance music_map"
        )
    return resize_maps(given.music_map.float(), *given.latent)


def _music_maps(config: DanceConfig) -> MusicMapGuidance:
    channels = config.guidance.map_channels or config.m2p.music_dim
    return MusicMapGuidance(channels, _encoder(config, channels))


def _encoder(config: DanceConfig, inputs: int, down: int = 1) -> GuidanceEncoder:
    own = config.guidance
    return GuidanceEncoder(
        inputs, config.unet.widths[0], own.widths, own.heads, down, "every" if down == 1 else "last", own.inner
    )


register_guidance(
    "pose", GuidanceType(make=lambda config: _encoder(config, KEYPOINTS), render=render_pose_maps, from_pose=True)
)
register_guidance(
    "skeleton",
    GuidanceType(make=lambda config: _encoder(config, 3, LATENT_STRIDE), render=render_dwpose, from_pose=True),
)
register_guidance(
    "pose_net",
    GuidanceType(make=lambda config: PoseNet(config.unet.widths[0]), render=render_stable_animator, from_pose=True),
)
register_guidance(
    "music",
    GuidanceType(
        make=lambda config: MusicGuidance(config.m2p.music_dim, config.m2p.resolution, _encoder(config, 1)),
        render=lambda given, config: given.music.float(),
        from_pose=False,
    ),
)
register_guidance("music_map", GuidanceType(make=_music_maps, render=render_music_maps, from_pose=False))
