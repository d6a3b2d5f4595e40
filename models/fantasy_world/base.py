"""Putting the base's weights in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from stagecoach.models.common.materialise import WeightSource, materialise, open_folder
from stagecoach.models.family import OnLoaded
from stagecoach.models.fantasy_world.backbone import SplitWanBlock, kept_dtype, meta_base
from stagecoach.models.fantasy_world.config import FantasyWorldConfig
from stagecoach.models.fantasy_world.streams import FantasyWorld


def load_base(
    network: FantasyWorld,
    config: FantasyWorldConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    on_loaded: OnLoaded | None = None,
) -> str:
    """Fill the frozen weights and the geometry blocks' first values, unit by unit; ``place`` is called with each
    frozen unit. Returns the sha256 that stands for the base. Raises ``ValueError`` naming file and names where the
    folder does not hold exactly the weights that ``config.backbone`` describes."""
    source = open_base(config)
    for unit, base_name, frozen in _units(network):
        keep = (lambda name: kept_dtype(name, dtype)) if frozen else (lambda name: torch.float32)
        materialise(unit, source, base_name, device, keep)
        if frozen and on_loaded is not None:
            on_loaded(unit)
    return source.digest()


def open_base(config: FantasyWorldConfig) -> WeightSource:
    """Where the weights of ``config.base`` are read from, checked."""
    return open_folder(
        config.base,
        meta_base(config.backbone),
        config.backbone.diffusers(),
        config.allow_random_init,
        "the Wan transformer",
    )


def _units(network: FantasyWorld) -> Iterator[tuple[nn.Module, Callable[[str], str | None], bool]]:
    """Unit, name of its parameters in the base, and whether it stays frozen."""
    yield network.stem, lambda name: name, True
    for i, block in enumerate(network.pcb):
        yield block, _in_block(i, block), True
    for i, layer in enumerate(network.irg, start=network.config.split):
        if isinstance(layer.geo_block, SplitWanBlock):
            yield layer.geo_block, _in_block(i, layer.geo_block), False
        if layer.video_block is not None:
            yield layer.video_block, _in_block(i, layer.video_block), True
    if network.stage > 1:
        yield network.out, lambda name: name, True


def _in_block(i: int, block: nn.Module) -> Callable[[str], str | None]:
    def base_name(name: str) -> str | None:
        inner = block.base_name(name) if isinstance(block, SplitWanBlock) else name
        return None if inner is None else f"blocks.{i}.{inner}"

    return base_name
