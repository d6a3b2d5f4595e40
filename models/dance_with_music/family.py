"""DanceWithMusic as the trainer sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from stagecoach.data.dance_with_music.schema import dance_schema
from stagecoach.data.format.schema import SampleSchema
from stagecoach.data.streaming.windows import Window
from stagecoach.models.common.materialise import OnLoaded, WeightSource
from stagecoach.models.dance_with_music.base import fill_base, open_base
from stagecoach.models.dance_with_music.config import SIZES, DanceConfig
from stagecoach.models.dance_with_music.flops import cost_table
from stagecoach.models.dance_with_music.music_to_pose.normalisation import MusicNorm
from stagecoach.models.dance_with_music.network import build_network
from stagecoach.models.dance_with_music.parts import part_of
from stagecoach.models.dance_with_music.preview import preview
from stagecoach.models.dance_with_music.schedules import window_frames
from stagecoach.models.dance_with_music.stages import make_stages
from stagecoach.models.dance_with_music.vae import Helpers, check_helpers, make_helpers
from stagecoach.models.dance_with_music.validate import validate
from stagecoach.models.family import Batch, Family, ModuleCost, Progress, StageSpec


class DanceWithMusicFamily(Family):
    """Music to pose to a dancing person who keeps their face; CHAMP on Stable Diffusion 1.5, or StableAnimator on
    Stable Video Diffusion."""

    name: ClassVar[str] = "dance_with_music"
    config_type: ClassVar[type[DanceConfig]] = DanceConfig
    sizes: ClassVar[Mapping[str, DanceConfig]] = SIZES
    aliases: ClassVar[Mapping[str, str]] = {
        f"{name}_loss": f"loss/{name}" for name in ("pose", "face", "diffusion", "id", "temporal", "custom")
    }

    def schema(self, config: DanceConfig) -> SampleSchema:
        return dance_schema(config.m2p.music_dim, config.unet.cross_dim)

    def stages(self, config: DanceConfig) -> tuple[StageSpec, ...]:
        return make_stages(config)

    def build(self, config: DanceConfig, stage: int, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
        return build_network(config, stage, device, dtype)

    def open_base(self, config: DanceConfig) -> WeightSource:
        return open_base(config)

    def check_base(self, config: DanceConfig) -> str:
        """On the weights of all parts and the helpers."""
        return f"{open_base(config).where}; {check_helpers(config)}"

    def load_base(
        self, network: nn.Module, config: DanceConfig, device: torch.device | str, on_loaded: OnLoaded | None = None
    ) -> str:
        """The weights of all parts, and the helpers beside the network: hidden from its module tree, so that no engine
        partitions them."""
        digest = fill_base(network, config, device, on_loaded)
        helpers = self.helpers(config, network.stage, device, network.dtype)
        if helpers:
            network.__dict__["helpers"] = Helpers(helpers["vae"], helpers.get("arcface"))
        return digest

    def helpers(
        self, config: DanceConfig, stage: int, device: torch.device | str, dtype: torch.dtype
    ) -> dict[str, nn.Module]:
        """Where there are pictures: the VAE's decoder, and ArcFace where one is given or a loss needs it."""
        return {} if config.phase(stage) == "m2p" else make_helpers(config, device, dtype)

    def init_from_statistics(self, network: nn.Module, statistics: Mapping[str, Any]) -> None:
        """The first normalisation of music, for MusicToPose and for guidance by music, as the training split has it;
        weights that were given bring their own."""
        weights = network.config.weights
        given = {*(["m2p"] if weights.m2p else []), *(f"guidance_{name}" for name in weights.guidance)}
        for name, module in network.named_modules():
            if isinstance(module, MusicNorm) and part_of(f"{name}.shift") not in given:
                module.fit(
                    torch.tensor(statistics["music_sum"], dtype=torch.float64),
                    torch.tensor(statistics["music_square_sum"], dtype=torch.float64),
                    statistics["frame_count"],
                )

    def adapter_file(self, name: str) -> str:
        return part_of(name)

    def window(self, config: DanceConfig, stage: int, step: int, total_steps: int, epoch: int) -> Window:
        frames = window_frames(config.frames, config.schedules.grown, config.phase(stage), step, total_steps, epoch)
        return Window(frames, config.frames.stride)

    def recompute_units(self, network: nn.Module) -> Iterable[nn.Module]:
        return network.recompute_units()

    def flops(self, config: DanceConfig, stage: int) -> list[ModuleCost]:
        return cost_table(config, stage)

    def preview(self, network: nn.Module, batch: Batch, progress: Progress) -> dict[str, np.ndarray]:
        return preview(network, batch, progress)

    def validate(
        self, network: nn.Module, batch: Batch, progress: Progress, statistics: Mapping[str, Any]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        return validate(network, batch, progress, statistics)
