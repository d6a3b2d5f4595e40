"""Camera head: camera tokens of the latent frames -> a pose for every video frame, refined step by step (VGGT)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecoach.models.common.layers import Float32Linear
from stagecoach.models.fantasy_world.config import VAE_TIME, CameraHeadConfig
from stagecoach.models.fantasy_world.geometry.vggt_block import VGGTBlock, modulate

POSE = 9
"""absT_quaR_FoV: translation 3, quaternion x y z w, field of view along height and width in radians."""


class FrameExpansion(nn.Module):
    """One token per latent frame -> one per video frame: the first stands for frame 0, each other gives four
    neighbours (1, 1, 1, 1, 2, 2, 2, 2, ... before the four learn to differ). In ``published`` order all latent frames
    come four times (1, 2, 3, ..., 1, 2, 3, ...), and the four rows of a channel stand side by side in the weight."""

    def __init__(self, dim: int, published: bool = False) -> None:
        super().__init__()
        self.published = published
        self.expand = nn.Linear(dim, VAE_TIME * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, f, d]`` -> ``[B, 4(f - 1) + 1, d]``."""
        others = self.expand(tokens[:, 1:])
        if self.published:
            others = others.unflatten(2, (-1, VAE_TIME)).permute(0, 3, 1, 2).flatten(1, 2)
        else:
            others = others.unflatten(2, (VAE_TIME, -1)).flatten(1, 2)
        return torch.cat([tokens[:, :1], others], 1)


class CameraHead(nn.Module):
    """Each iteration reads the tokens modulated by the previous estimate (detached) and adds a correction, starting
    from the identity pose.

    Translation and quaternion are linear; the fields of view go through softplus. VGGT has a ReLU there, which gives
    no gradient wherever the number behind it is negative, as it is for half of all initialisations; softplus is as
    positive, never flat, and starts at 0.69 rad, a common lens. A ``published`` head has the ReLU, starts from zeros
    and norms the token of frame 0 alone.
    """

    def __init__(self, config: CameraHeadConfig, tap_dim: int, published: bool = False) -> None:
        super().__init__()
        self.published, width = published, config.width
        self.iterations = config.iterations
        self.token_in = nn.Linear(tap_dim, width) if tap_dim != width else nn.Identity()
        self.frames = FrameExpansion(width, published)
        self.token_norm, self.trunk_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.empty_pose = nn.Parameter(torch.zeros(1, 1, POSE))
        self.embed_pose = nn.Linear(POSE, width)
        self.pose_modulation = nn.Linear(width, 3 * width)
        self.adaptive_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.trunk = nn.ModuleList(
            VGGTBlock(
                width, config.heads, config.mlp_ratio, qk_norm=False, published=published, modulated=not published
            )
            for _ in range(config.layers)
        )
        self.branch_in, self.branch_out = nn.Linear(width, config.hidden), Float32Linear(config.hidden, POSE)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """``[B, f, tap_dim]`` -> one fp32 ``[B, F, 9]`` per iteration, the last the best."""
        tokens = self.frames(self.token_in(tokens))
        if self.published:
            tokens = torch.cat([self.token_norm(tokens[:, :1]), tokens[:, 1:]], 1)
            pose = torch.zeros(*tokens.shape[:2], POSE, device=tokens.device)
        else:
            tokens = self.token_norm(tokens)
            pose = F.pad(torch.ones(*tokens.shape[:2], 1, device=tokens.device), (6, 2))  # w of the quaternion is 1
        positive = F.relu if self.published else F.softplus
        estimates = []
        for iteration in range(self.iterations):
            seen = pose.detach().to(tokens.dtype) if iteration else self.empty_pose.expand(*tokens.shape[:2], POSE)
            shift, scale, gate = self.pose_modulation(F.silu(self.embed_pose(seen))).chunk(3, dim=-1)
            x = tokens + gate * modulate(self.adaptive_norm(tokens), shift, scale)
            for block in self.trunk:
                x = block(x)
            correction = self.branch_out(F.gelu(self.branch_in(self.trunk_norm(x))))
            pose = pose.detach() + correction
            estimates.append(torch.cat([pose[..., :7], positive(pose[..., 7:])], -1))
        return estimates
