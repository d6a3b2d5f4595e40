"""Weights that others published: FantasyWorld's own, and VGGT-1B's as initial values of the geometry branch."""

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import nn

from stagecoach.models.common.published import PublishedFile, stored_shapes
from stagecoach.models.fantasy_world.config import SIZES, FantasyWorldConfig
from stagecoach.models.fantasy_world.network import build_network
from stagecoach.models.fantasy_world.weight_names import UNUSED, VGGT_UNUSED, published_name, vggt_name

SIZE, STAGE = "wan2.1-14b", 2
_MARK = "vggt.projection_head.weight"


def open_published(path: Path) -> PublishedFile | None:
    """``model.pth`` of acvlab/FantasyWorld-Wan2.1-I2V-14B-480P: what both stages train; what it may hold of the frozen
    Wan2.1 is not read. None where ``path`` is another kind of file."""
    if _MARK not in stored_shapes(path):
        return None
    values = SIZES[SIZE].model_dump() | {"compatibility": "published"}
    config = FantasyWorldConfig.model_validate(values)
    return PublishedFile(
        path, trained_shapes(config, STAGE), partial(published_name, split=config.split), UNUSED, SIZE, STAGE, config
    )


def open_vggt(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> PublishedFile:
    """VGGT-1B's aggregator and heads, of those that ``shapes`` name. Raises ``ValueError``."""
    names = {name: theirs for name in shapes if (theirs := vggt_name(name)) is not None}
    return PublishedFile(path, {name: shapes[name] for name in names}, names.__getitem__, VGGT_UNUSED)


@torch.no_grad()
def start_from_vggt(network: nn.Module, path: str | Path) -> None:
    """Put VGGT-1B's weights in place in a ``published`` network; what VGGT has not keeps its initial values."""
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    file = open_vggt(path, {name: tuple(p.shape) for name, p in parameters.items()})
    for name in file.expected:
        parameters[name].copy_(file.read(name))


@lru_cache(4)
def trained_shapes(config: FantasyWorldConfig, stage: int) -> dict[str, tuple[int, ...]]:
    """Of all that training has changed by the end of ``stage``."""
    network = build_network(config, stage, "meta")
    return {name: tuple(p.shape) for name, p in network.named_parameters() if p.requires_grad}
