"""FantasyWorld as the trainer sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from stagecoach.data.fantasy_world.schema import fantasy_world_schema
from stagecoach.data.format.schema import SampleSchema
from stagecoach.models.common.materialise import WeightSource, open_folder
from stagecoach.models.family import Batch, Family, ModuleCost, Progress, StageSpec
from stagecoach.models.fantasy_world.backbone import base_name
from stagecoach.models.fantasy_world.config import SIZES, FantasyWorldConfig
from stagecoach.models.fantasy_world.flops import cost_table
from stagecoach.models.fantasy_world.network import build_network
from stagecoach.models.fantasy_world.preview import preview
from stagecoach.models.fantasy_world.stages import make_stages
from stagecoach.models.fantasy_world.validate import validate


class FantasyWorldFamily(Family):
    """A frozen Wan2.1 video transformer with a geometry branch; stages latent bridging and unified co-optimisation."""

    name: ClassVar[str] = "fantasy_world"
    config_type: ClassVar[type[FantasyWorldConfig]] = FantasyWorldConfig
    sizes: ClassVar[Mapping[str, FantasyWorldConfig]] = SIZES

    def schema(self, config: FantasyWorldConfig) -> SampleSchema:
        backbone = config.backbone
        return fantasy_world_schema(
            backbone.out_channels, backbone.text_dim, config.image_to_video, backbone.image_dim or 0
        )

    def stages(self, config: FantasyWorldConfig) -> tuple[StageSpec, ...]:
        return make_stages(config)

    def build(
        self, config: FantasyWorldConfig, stage: int, device: torch.device | str, dtype: torch.dtype
    ) -> nn.Module:
        return build_network(config, stage, device, dtype)

    def open_base(self, config: FantasyWorldConfig) -> WeightSource:
        return open_folder(
            config.base,
            WanTransformer3DModel,
            config.backbone.diffusers(),
            config.allow_random_init,
            "the Wan transformer",
        )

    def base_name(self, config: FantasyWorldConfig, name: str) -> str | None:
        return base_name(config.split, name)

    def recompute_units(self, network: nn.Module) -> Iterable[nn.Module]:
        return network.recompute_units()

    def leaf_modules(self, network: nn.Module) -> Iterable[nn.Module]:
        return network.leaf_modules()

    def flops(self, config: FantasyWorldConfig, stage: int) -> list[ModuleCost]:
        return cost_table(config, stage)

    def preview(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, np.ndarray]:
        return preview(network, batch, progress)

    def validate(
        self, network: nn.Module, batch: Batch, progress: Progress, statistics: Mapping[str, Any]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        return validate(network, batch, progress, statistics)
