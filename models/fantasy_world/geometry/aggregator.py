"""The ``aggregator`` geometry branch: VGGT's alternating frame and global attention at its own width.

One pair of blocks stands next to each IRG video block. The frame block attends inside a latent frame, the global block
over all of them; the exchange with the video happens in the middle of the global block. Both turn queries and keys by
the video's 3-D rotation, those of ``compatibility: published`` by VGGT's 2-D one, which knows no order of frames.
"""

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from stagecoach.models.common.layers import Float32Linear
from stagecoach.models.fantasy_world.config import VAE_TIME, AggregatorConfig
from stagecoach.models.fantasy_world.geometry.tokens import SpecialTokens
from stagecoach.models.fantasy_world.geometry.vggt_block import VGGTBlock, split_modulation
from stagecoach.models.fantasy_world.heads.camera_head import POSE
from stagecoach.models.fantasy_world.rope import Rotation


class AggregatorPair(nn.Module):
    """Frame block, then global block. Never called as a whole: ``open`` runs it up to the exchange with the video."""

    def __init__(self, config: AggregatorConfig, published: bool = False) -> None:
        super().__init__()
        self.frame_block, self.global_block = (
            VGGTBlock(config.dim, config.heads, config.mlp_ratio, qk_norm=True, published=published) for _ in range(2)
        )

    def open(self, x: Tensor, time: Tensor, in_frame: Rotation, in_clip: Rotation) -> tuple[Tensor, tuple]:
        """``x`` ``[B, f P, d]`` with P = 5 + h w, ``time`` ``[B, 6, d]``, rotations of P and of f P tokens."""
        frames = x.shape[1] // in_frame[0].shape[1]
        x = x.unflatten(1, (frames, -1)).flatten(0, 1)  # [B f, P, d]
        x = self.frame_block(x, time.repeat_interleave(frames, 0), *in_frame)
        x = x.unflatten(0, (-1, frames)).flatten(1, 2)
        first, second = split_modulation(self.global_block.modulation(time))
        return self.global_block.attention(x, *first, *in_clip), (x, second)

    def close(self, x: Tensor, carried: tuple) -> Tensor:
        """``x`` ``[B, f P, d]`` and what ``open`` carried over -> the global block's output."""
        return self.global_block.feed_forward(x, *carried[1])

    def features(self, x: Tensor, carried: tuple) -> Tensor:
        """``[B, f P, 2 d]``: what the frame block gave and what the global block gave."""
        return torch.cat([carried[0], x], -1)


class TimeProjection(nn.Module):
    """The geometry branch's own embedding of the noise level, in fp32: ``[B]`` in 0..1000 -> ``[B, 6, d]``."""

    def __init__(self, freq_dim: int, dim: int) -> None:
        super().__init__()
        self.frequencies = Timesteps(freq_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.proj_in, self.proj_mid = Float32Linear(freq_dim, dim), Float32Linear(dim, dim)
        self.proj_out = Float32Linear(dim, 6 * dim)

    def forward(self, timestep: Tensor) -> Tensor:
        x = self.proj_mid(F.silu(self.proj_in(self.frequencies(timestep.float()))))
        return self.proj_out(F.silu(x)).unflatten(1, (6, -1))


class PublishedTimeProjection(TimeProjection):
    """With the angles in fp64, which reach 1000 rad: in fp32 they are off by up to 6e-5."""

    def __init__(self, freq_dim: int, dim: int) -> None:
        super().__init__(freq_dim, dim)
        self.frequencies = ExactTimesteps(freq_dim // 2)


class ExactTimesteps(nn.Module):
    """``[B]`` -> fp32 ``[B, 2 count]``, cosines, then sines."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, timestep: Tensor) -> Tensor:
        powers = torch.arange(self.count, dtype=torch.float64, device=timestep.device) / self.count
        angle = torch.outer(timestep.double(), 10000.0**-powers)
        return torch.cat([angle.cos(), angle.sin()], 1).float()


class PosedTokens(SpecialTokens):
    """Special tokens; where cameras are given, their encodings are added to the camera tokens."""

    def __init__(self, config: AggregatorConfig) -> None:
        super().__init__(config.dim)
        self.proj_in = nn.Linear(VAE_TIME * POSE, config.pose_hidden)
        self.proj_out = nn.Linear(config.pose_hidden, config.dim)

    def forward(self, patches: Tensor, poses: Tensor, given: Tensor) -> Tensor:
        """``[B, f, h w, d]``, ``[B, f, 36]``, bool ``[B]`` -> ``[B, f (5 + h w), d]``."""
        camera = self.proj_out(F.gelu(self.proj_in(poses))) * given[:, None, None].to(poses.dtype)
        return super().forward(patches, camera)


def group_poses(poses: Tensor) -> Tensor:
    """``[B, 4(f - 1) + 1, 9]`` -> ``[B, f, 36]``, grouped as the Wan VAE groups frames: (0, 0, 0, 0), (1-4), (5-8),
    ..."""
    return torch.cat([poses[:, :1].expand(-1, VAE_TIME - 1, -1), poses], 1).unflatten(1, (-1, VAE_TIME)).flatten(2)
