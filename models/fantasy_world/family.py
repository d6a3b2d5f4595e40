"""FantasyWorld as the trainer sees it."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from diffusers import WanTransformer3DModel

from stagecoach.data.fantasy_world.schema import fantasy_world_schema
from stagecoach.data.format.schema import SampleSchema
from stagecoach.models.common.licences import APACHE, Part
from stagecoach.models.common.materialise import WeightSource, open_folder
from stagecoach.models.common.onnx_export import Component
from stagecoach.models.common.onnx_vae import video_decoder
from stagecoach.models.common.published import PublishedFile
from stagecoach.models.family import Batch, Family
from stagecoach.models.fantasy_world.backbone import base_name
from stagecoach.models.fantasy_world.config import SIZES, FantasyWorldConfig
from stagecoach.models.fantasy_world.network import build_network
from stagecoach.models.fantasy_world.preview import SAMPLED, preview, sampled
from stagecoach.models.fantasy_world.published import open_published, open_vggt, start_from_vggt, trained_shapes
from stagecoach.models.fantasy_world.stages import METRICS, make_stages
from stagecoach.models.fantasy_world.validate import validate
from stagecoach.models.metrics.record import Record


class FantasyWorldFamily(Family):
    """A frozen Wan2.1 video transformer with a geometry branch; stages latent bridging and unified co-optimisation."""

    name = "fantasy_world"
    config_type = FantasyWorldConfig
    sizes = SIZES
    metrics = METRICS

    parts: ClassVar[Mapping[str, tuple[Part, ...]]] = {
        size: (Part("transformer, VAE, umT5, CLIP", repository, APACHE, base=True),)
        for size, repository in (
            ("wan2.1-1.3b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
            ("wan2.1-1.3b-i2v", "alibaba-pai/Wan2.1-Fun-1.3B-InP"),
            ("wan2.1-14b", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"),
        )
    }
    stages = staticmethod(make_stages)
    build = staticmethod(build_network)
    preview = staticmethod(preview)
    validate = staticmethod(validate)
    sampled = staticmethod(sampled)
    sampled_metrics = SAMPLED

    def onnx_components(self, config: FantasyWorldConfig, stage: int) -> dict[str, Component]:
        """The decoder of Wan's VAE, for clips of the config's length."""
        return {"vae_decoder": video_decoder(config.clip.latent[0])}

    def schema(self, config: FantasyWorldConfig) -> SampleSchema:
        backbone = config.backbone
        return fantasy_world_schema(
            backbone.out_channels, backbone.text_dim, config.image_to_video, backbone.image_dim or 0
        )

    def open_base(self, config: FantasyWorldConfig) -> WeightSource:
        settings, random = config.backbone.diffusers(), config.allow_random_init
        return open_folder(config.base, WanTransformer3DModel, settings, random, "the Wan transformer")

    def base_name(self, config: FantasyWorldConfig, name: str) -> str | None:
        return base_name(config.split, name)

    def example_sizes(self, config: FantasyWorldConfig, stage: int) -> dict[str, int]:
        clip, (frames, height, width) = config.clip, config.clip.latent
        return {
            "f": frames,
            "h": height,
            "w": width,
            "F": clip.frames,
            "H": clip.height,
            "W": clip.width,
            "L": config.backbone.text_length,
        }

    def fixed_sizes(self, config: FantasyWorldConfig, stage: int) -> dict[str, int]:
        return {"F": config.clip.frames, "H": config.clip.height, "W": config.clip.width}

    def generation(self, weights, options):
        from stagecoach.models.fantasy_world.generate import FantasyWorldGeneration  # its pipeline opens families

        return FantasyWorldGeneration(weights, options)

    def open_published(self, path: Path) -> PublishedFile | None:
        return open_published(path)

    def check_start(self, config: FantasyWorldConfig, trained: FantasyWorldConfig) -> None:
        if config.compatibility != trained.compatibility:
            raise ValueError(
                f"weights of compatibility {trained.compatibility}, expected {config.compatibility}, which the recipe "
                f"names; set model.compatibility to {trained.compatibility}"
            )

    def check_base(self, config: FantasyWorldConfig) -> str:
        found = super().check_base(config)
        if config.vggt is None:
            return found
        return f"{found}; geometry {open_vggt(config.vggt, trained_shapes(config, 1)).where}"

    def init_from_statistics(self, network, statistics):
        """Nothing of the data; VGGT-1B's weights where the config names them."""
        if network.config.vggt is not None:
            start_from_vggt(network, network.config.vggt)

    def record(self, arrays):
        """Depth and cameras."""
        depth, extrinsics, intrinsics = (
            torch.from_numpy(np.array(arrays[name], np.float32)) for name in ("depth", "extrinsics", "intrinsics")
        )
        return Record(depth=torch.where(torch.isfinite(depth), depth, 0.0), cameras=(extrinsics, intrinsics))

    def fill_example(self, batch: Batch, config: FantasyWorldConfig) -> None:
        """Depth around 1 scene unit, a camera that moves forward without turning, a field of view of 64 degrees."""
        clip = config.clip
        depth, intrinsics = batch["depth"], batch["intrinsics"]
        depth.mul_(0.2).abs_().add_(0.5)
        extrinsics = torch.eye(4, device=depth.device)[:3].repeat(len(depth), clip.frames, 1, 1)
        extrinsics[..., 2, 3] = -torch.linspace(0, 0.4, clip.frames, device=depth.device)
        batch["extrinsics"] = extrinsics
        middle = [0.8 * clip.width, 0.8 * clip.width, clip.width / 2, clip.height / 2]
        intrinsics.copy_(intrinsics.new_tensor(middle).expand_as(intrinsics))
