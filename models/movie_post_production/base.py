"""Putting the base's weights in place."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from stagecoach.models.common.materialise import WeightSource, materialise, open_folder
from stagecoach.models.family import OnLoaded
from stagecoach.models.movie_post_production.config import MoviePostConfig
from stagecoach.models.movie_post_production.lora import OWN_PARTS
from stagecoach.models.movie_post_production.network import MoviePostNetwork, meta_base

BASE_PARTS = (
    "time_text_embed",
    "context_embedder",
    "x_embedder",
    "transformer_blocks",
    "single_transformer_blocks",
    "norm_out",
    "proj_out",
)
OWN_IN_BLOCKS = ("layout_out", "modulation", "feedback")


def load_base(
    network: MoviePostNetwork,
    config: MoviePostConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    on_loaded: OnLoaded | None = None,
) -> str:
    """Fill the frozen weights, unit by unit; ``place`` is called with each: the largest modules that hold nothing of
    ours. Returns the sha256 that stands for the base. Raises ``ValueError`` naming file and names where the folder does
    not hold exactly the weights that ``config.backbone`` describes."""
    source = open_base(config)
    for prefix, unit in frozen_units(network):
        materialise(unit, source, lambda name, prefix=prefix: base_name(f"{prefix}.{name}"), device, lambda name: dtype)
        if on_loaded is not None:
            on_loaded(unit)
    return source.digest()


def open_base(config: MoviePostConfig) -> WeightSource:
    """Where the weights of ``config.base`` are read from, checked."""
    return open_folder(
        config.base,
        meta_base(config.backbone),
        config.backbone.diffusers(),
        config.allow_random_init,
        "the FLUX transformer",
    )


def base_name(name: str) -> str | None:
    """Where a parameter of the network stands in diffusers' model; None for one of ours."""
    parts = name.split(".")
    if parts[0] not in BASE_PARTS or set(parts) & {*OWN_PARTS, *OWN_IN_BLOCKS}:
        return None
    return ".".join(part for part in parts if part != "base_layer")


def frozen_units(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Name and module of the largest sub-modules whose parameters are all of the base."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        ours = [base_name(f"{path}.{inner}") is None for inner, _ in child.named_parameters()]
        if ours and not any(ours):
            yield path, child
        elif not all(ours):
            yield from frozen_units(child, path)
