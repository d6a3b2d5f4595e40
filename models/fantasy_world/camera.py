"""Cameras: Plücker coordinates of their rays, per pixel and per token, and the camera control of the 14 B video branch,
from coordinates to features and into the cross-attention (after AC3D, as in the published FantasyWorld).

A ray through camera centre o with unit direction d is (o x d, d): six numbers that do not depend on which point of the
ray is named. World is the frame of camera 0.
"""

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn

from stagecoach.data.fantasy_world.cameras import centres, pixel_rays
from stagecoach.models.fantasy_world.backbone import SplitWanBlock
from stagecoach.models.fantasy_world.config import PATCH, VAE_SPACE, VAE_TIME, CameraControlConfig
from stagecoach.models.fantasy_world.geometry.branch import ZeroLinear
from stagecoach.models.fantasy_world.rope import Rotation

PLUCKER_CHANNELS = 6


def plucker(extrinsics: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """``[B, F, 3, 4]`` (w2c), ``[B, F, 4]`` (pixels) -> ``[B, F, H, W, 6]``: o x d, d through the pixel centres."""
    rays = F.normalize(pixel_rays(intrinsics, height, width), dim=-1)
    return _with_moment(rays, extrinsics)


def token_plucker(
    extrinsics: Tensor, intrinsics: Tensor, grid: tuple[int, int, int], height: int, width: int
) -> Tensor:
    """``plucker`` averaged over a token's pixels and over its latent frame's video frames: ``[B, f h w, 6]``.

    o x d is linear in d and o is one point per frame, so that the average over pixels may be taken of the directions
    before they are turned into the world; and of one frame at a time, so that ``[B, F, H, W]`` is never held.
    """
    _, h, w = grid
    frames = []
    for one in intrinsics.unbind(1):
        rays = F.normalize(pixel_rays(one, height, width), dim=-1)  # [B, H, W, 3]
        frames.append(rays.unflatten(1, (h, -1)).unflatten(3, (w, -1)).mean((2, 4)))
    rays = torch.stack(frames, 1)  # [B, F, h, w, 3]
    return average_groups(_with_moment(rays, extrinsics)).flatten(1, 3)


def average_groups(x: Tensor) -> Tensor:
    """``[B, 4(f - 1) + 1, ...]`` -> ``[B, f, ...]``: means over frames (0), (1-4), (5-8), ..., as the Wan VAE groups
    them."""
    groups = x[:, 1:].unflatten(1, (-1, VAE_TIME)).mean(2) if x.shape[1] > 1 else x[:, 1:]
    return torch.cat([x[:, :1], groups], 1)


def _with_moment(rays: Tensor, extrinsics: Tensor) -> Tensor:
    """Camera-frame directions ``[B, F, h, w, 3]`` -> ``[B, F, h, w, 6]`` in the world."""
    rotation, centre = extrinsics[..., :3], centres(extrinsics)
    directions = (rays[..., None] * rotation[:, :, None, None]).sum(-2)  # d = R^T d_camera
    moments = torch.linalg.cross(centre[:, :, None, None].expand_as(directions), directions)
    return torch.cat([moments, directions], -1)


class PoseEncoder(nn.Module):
    """Plücker coordinates of a token -> its camera condition; 0 where the camera is withheld."""

    def __init__(self, hidden: int, dim: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(PLUCKER_CHANNELS, hidden)
        self.proj_out = nn.Linear(hidden, dim)

    def forward(self, rays: Tensor, given: Tensor) -> Tensor:
        """``[B, N, 6]`` and bool ``[B]`` -> ``[B, N, d]``."""
        return self.proj_out(F.silu(self.proj_in(rays))) * given[:, None, None].to(rays.dtype)


_TEXT_LENGTH = 512
"""How diffusers tells the text from the image states in front of it."""


class CameraEncoder(nn.Module):
    """Cameras -> one feature vector per token of the video stream; 0 where the camera is withheld."""

    def __init__(self, config: CameraControlConfig, dim: int) -> None:
        super().__init__()
        folded = PLUCKER_CHANNELS * VAE_SPACE**2
        self.full_rate = nn.Sequential(
            nn.Conv2d(folded, folded, 1),
            nn.GroupNorm(2, folded),
            nn.Conv2d(folded, folded, 1),
            nn.GroupNorm(2, folded),
            nn.ReLU(),
        )
        self.half_rate = nn.Sequential(nn.Conv2d(folded, 2 * folded, 1), nn.GroupNorm(2, 2 * folded), nn.ReLU())
        self.patches = nn.Conv2d(2 * folded, dim, PATCH, stride=PATCH)
        self.mix = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.LayerNorm(dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, config.features),
            nn.LayerNorm(config.features),
        )

    def forward(self, folded: Tensor, given: Tensor) -> Tensor:
        """``[B, F, 384, H / 8, W / 8]`` and bool ``[B]`` -> ``[B, f h w, features]``."""
        x = halve_time(per_frame(self.full_rate, folded))
        x = halve_time(per_frame(self.half_rate, x))
        x = per_frame(self.patches, x).permute(0, 1, 3, 4, 2).flatten(1, 3)
        return self.mix(x) * given[:, None, None].to(x.dtype)


class CameraAdapter(nn.Module):
    """What a block adds to its cross-attention's output, before the frozen output projection; 0 at first. A
    ``published`` one has a ReLU inside and adds nothing where the camera is withheld."""

    def __init__(self, config: CameraControlConfig, dim: int, published: bool = False) -> None:
        super().__init__()
        self.published = published
        self.camera = nn.Linear(config.features, config.features)
        self.video_in = nn.Linear(dim, config.hidden)
        self.video_out = nn.Linear(config.hidden, config.features)
        self.down, self.up = nn.Linear(config.features, config.rank), ZeroLinear(config.rank, dim)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """``[B, N, d]``, ``[B, N, features]`` -> ``[B, N, d]``."""
        inner = self.video_in(x)
        mixed = self.camera(features) + self.video_out(F.relu(inner) if self.published else F.gelu(inner))
        shift = self.up(F.relu(self.down(mixed)))
        return shift * features.any(2).any(1)[:, None, None] if self.published else shift


class ControlledWanBlock(SplitWanBlock):
    """A frozen Wan block whose cross-attention an adapter may reach into. It may also be called as a whole."""

    def forward(self, x: Tensor, *inputs: Tensor | Rotation | CameraAdapter | None) -> Tensor:
        """The whole block; the arguments are those of ``open``."""
        return self.close(*self.open(x, *inputs))

    def open(
        self, x: Tensor, context: Tensor, projection: Tensor, rotation: Rotation, *control: Tensor | CameraAdapter
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As ``SplitWanBlock.open``; ``control``: the cameras' features ``[B, f h w, features]`` and the adapter that
        reads them, or nothing."""
        if not control:
            return super().open(x, context, projection, rotation)
        features, adapter = control
        half = self.attention
        shift, scale, gate, *feed_forward = self.modulation(projection)
        x = half.self_attention(x, shift, scale, gate, *rotation)
        normed = half.norm2(x.float()).type_as(x)
        return x + controlled_cross_attention(half.attn2, normed, context, features, adapter), tuple(feed_forward)


def controlled_cross_attention(
    attn: WanAttention, x: Tensor, context: Tensor, features: Tensor, adapter: CameraAdapter
) -> Tensor:
    """diffusers' Wan cross-attention over image and text states, with the adapter between mixing and projection."""

    def attend(key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (attn.heads, -1)) for part in (query, key, value))
        return dispatch_attention_fn(q, k, v, backend=attn.processor._attention_backend).flatten(2)

    image, text = context[:, :-_TEXT_LENGTH], context[:, -_TEXT_LENGTH:]
    query = attn.norm_q(attn.to_q(x))
    mixed = attend(attn.norm_k(attn.to_k(text)), attn.to_v(text))
    if attn.add_k_proj is not None:
        mixed = mixed + attend(attn.norm_added_k(attn.add_k_proj(image)), attn.add_v_proj(image))
    mixed = mixed + adapter(mixed, features)
    for layer in attn.to_out:
        mixed = layer(mixed)
    return mixed


def fold_plucker(extrinsics: Tensor, intrinsics: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Plücker coordinates with 8 x 8 pixels folded into channels: ``[B, F, 384, H / 8, W / 8]``. Frame by frame, so
    that the fp32 picture of one frame is held at a time."""
    frames = []
    for frame in range(intrinsics.shape[1]):
        one = slice(frame, frame + 1)
        rays = plucker(extrinsics[:, one], intrinsics[:, one], height, width)[:, 0]
        frames.append(F.pixel_unshuffle(rays.permute(0, 3, 1, 2), VAE_SPACE).to(dtype))
    return torch.stack(frames, 1)


def published_lens(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Intrinsics ``[..., 4]`` as the published rays are made of them: focal lengths and the image's middle, in pixels,
    multiplied by the image's size once more. Its weights were trained with such rays, nearly parallel as they are."""
    size = intrinsics.new_tensor([width, height])
    return torch.cat([intrinsics[..., :2], (size / 2).expand_as(intrinsics[..., 2:])], -1) * size.repeat(2)


def halve_time(x: Tensor) -> Tensor:
    """``[B, 2n + 1, ...]`` -> ``[B, n + 1, ...]``: means of neighbours, the first frame by itself. Twice, it groups
    frames as the Wan VAE does."""
    if x.shape[1] == 1:
        return x
    return torch.cat([x[:, :1], x[:, 1:].unflatten(1, (-1, 2)).mean(2)], 1)


def per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2-D layer to ``[B, F, C, h, w]``."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
