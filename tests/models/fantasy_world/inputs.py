"""Arguments of ``FantasyWorld.predict`` with random content."""

import torch

from stagecoach.models.fantasy_world.config import FantasyWorldConfig


def make_inputs(config: FantasyWorldConfig, batch: int = 2, seed: int = 0, kept: int = 3) -> dict:
    g = torch.Generator().manual_seed(seed)
    clip = config.clip
    f, h, w = clip.latent
    translation = 0.2 * torch.randn(batch, clip.frames, 3, 1, generator=g)
    translation[:, 0] = 0
    inputs = {
        "latents_noisy": torch.randn(batch, config.backbone.out_channels, f, h, w, generator=g),
        "timestep": 1000 * torch.rand(batch, generator=g),
        "text": torch.randn(batch, 7, config.backbone.text_dim, generator=g),
        "extrinsics": torch.cat([torch.eye(3).expand(batch, clip.frames, 3, 3), translation], -1),
        "intrinsics": torch.tensor([80.0, 70.0, clip.width / 2, clip.height / 2]).repeat(batch, clip.frames, 1),
        "camera_given": torch.arange(batch) % 2 == 0,
        "frames": torch.stack([torch.randperm(clip.frames, generator=g)[:kept] for _ in range(batch)]),
    }
    if config.image_to_video:
        inputs["image_latent"] = torch.randn(batch, 20, f, h, w, generator=g)
        inputs["image_states"] = torch.randn(batch, 257, config.backbone.image_dim, generator=g)
    return inputs


def open_gates(network: torch.nn.Module) -> None:
    """Move every parameter that starts at zero away from it, so that no path is shut."""
    g = torch.Generator().manual_seed(9)
    for parameter in network.parameters():
        if parameter.requires_grad and not parameter.any():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=g)
