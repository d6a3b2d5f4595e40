"""Random weights in the layout of FantasyWorld's published file, at small widths."""

import torch

from stagecoach.models.fantasy_world.published import trained_shapes
from stagecoach.models.fantasy_world.weight_names import published_name
from tests.models.fantasy_world.conftest import AGGREGATOR

SMALL = AGGREGATOR.model_copy(update={"compatibility": "published"})
UNUSED_TENSORS = {
    "vggt.aggregator.CamTokenProjector.mlp.0.weight": torch.zeros(16, 36),
    "vggt.camera_head.trunk.0.modulation": torch.zeros(1, 6, 64),
    "pipe.dit.blocks.0.self_attn.q.weight": torch.ones(1),
    "IRGBlock.0.x_dit.cross_attn.q.weight": torch.ones(1),
}


def published_weights(config) -> dict[str, torch.Tensor]:
    """By published names, of all that the network trains."""
    shapes = {}
    for name, shape in trained_shapes(config, 2).items():
        theirs = published_name(name, config.split)
        shapes[theirs] = stored_shape(theirs, shape)
    return random_weights(shapes)


def stored_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the published file has for ours: convolutions where we have linear layers, and the like."""
    if name in ("vggt.aggregator.camera_token", "vggt.aggregator.register_token"):
        return (1, *shape)
    if name.endswith("residual.0.gamma"):
        return (*shape, 1, 1, 1)
    if name == "vggt.projection_head.weight":
        return (*shape, 1, 1, 1)
    if name == "camera_condition.pose_encoder.patch_embedding.weight":
        return (*shape[:2], 1, *shape[2:])
    return (*shape, 1) if name.endswith("expand_channels.weight") else shape


def random_weights(shapes: dict, seed: int = 3) -> dict[str, torch.Tensor]:
    """Gains near 1, all else so that signals keep their size; nothing is 0."""
    g, found = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=g)
        if name.endswith((".gamma", "norm.weight")) or (name.endswith(".weight") and len(shape) == 1):
            found[name] = 1 + 0.2 * value
        elif name.endswith(".weight"):
            found[name] = value / value[0].numel() ** 0.5
        else:
            found[name] = 0.3 * value
    return found
