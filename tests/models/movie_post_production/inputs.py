"""Arguments of ``MoviePostNetwork.predict`` with random content, and networks whose paths are open."""

import torch
import torch.nn.functional as F

from stagecoach.models.movie_post_production.config import MoviePostConfig
from stagecoach.models.movie_post_production.family import MoviePostProductionFamily
from stagecoach.models.movie_post_production.network import MoviePostNetwork, build_network

BOXES = [
    [[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 1.0, 0.75], [0.0, 0.5, 1.0, 1.0]],
    [[0.5, 0.5, 0.75, 1.0], [0.1, 0.1, 0.2, 0.2], [0.0, 0.0, 0.0, 0.0]],
]
"""On a 4 x 4 grid: overlapping ones, one inside a single token, and in the second picture one that is padding."""


def make_instances(config: MoviePostConfig, boxes=BOXES, seed: int = 0) -> dict:
    g, own = torch.Generator().manual_seed(seed), config.instance
    boxes = torch.tensor(boxes)
    b, n = boxes.shape[:2]
    given = torch.ones(b, n, dtype=torch.bool)
    return {
        "boxes": boxes,
        "valid": (boxes[..., 2:] > boxes[..., :2]).all(-1),
        "depth": torch.arange(b * n).view(b, n) % 3,
        "clip": F.normalize(torch.randn(b, n, own.clip_dim, generator=g), dim=-1),
        "dino": F.normalize(torch.randn(b, n, own.dino_dim, generator=g), dim=-1),
        "clip_given": given,
        "dino_given": given.clone(),
        "text": torch.randn(b, n, config.backbone.pooled_dim, generator=g),
        "text_given": given.clone(),
        "layout_given": torch.ones(b, dtype=torch.bool),
    }


def make_inputs(config: MoviePostConfig, boxes=BOXES, seed: int = 0) -> dict:
    g, backbone = torch.Generator().manual_seed(seed + 1), config.backbone
    b, (h, w) = len(boxes), config.image.grid
    return {
        "latent": torch.randn(b, backbone.latent_channels, 2 * h, 2 * w, generator=g),
        "t": torch.rand(b, generator=g),
        "guidance": torch.linspace(1.0, 3.5, b),
        "t5": torch.randn(b, backbone.text_length, backbone.text_dim, generator=g),
        "pooled": torch.randn(b, backbone.pooled_dim, generator=g),
        "instances": make_instances(config, boxes, seed),
    }


def make_network(config: MoviePostConfig, stage: int, dtype: torch.dtype = torch.float32) -> MoviePostNetwork:
    """With the base in place, in which all that is of ours requires grad."""
    network = build_network(config, stage, "cpu", dtype)
    MoviePostProductionFamily().load_base(network, config, "cpu")
    return network


def open_gates(network: torch.nn.Module, size: float = 0.1) -> torch.nn.Module:
    """Move every parameter of ours that starts at zero away from it, so that no path is shut."""
    g = torch.Generator().manual_seed(9)
    for parameter in network.parameters():
        if parameter.requires_grad and not parameter.any():
            parameter.data = (size * torch.randn(parameter.shape, generator=g)).to(parameter.dtype)
    return network
