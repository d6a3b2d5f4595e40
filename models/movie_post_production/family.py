"""MoviePostProduction as the trainer sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from stagecoach.data.format.schema import SampleSchema
from stagecoach.data.movie_post_production.schema import movie_post_production_schema
from stagecoach.models.common.materialise import OnLoaded, WeightSource, open_folder
from stagecoach.models.family import Family
from stagecoach.models.movie_post_production import example
from stagecoach.models.movie_post_production.config import SIZES, MoviePostConfig
from stagecoach.models.movie_post_production.identity.decode import Helpers, check_helpers, make_decoder, make_dino
from stagecoach.models.movie_post_production.network import build_network
from stagecoach.models.movie_post_production.preview import preview
from stagecoach.models.movie_post_production.stages import IDENTITY_STAGE, METRICS, make_stages
from stagecoach.models.movie_post_production.validate import validate


class MoviePostProductionFamily(Family):
    """A frozen FLUX.1 with references in boxes; stages layout, modulation and identity, feedback."""

    name = "movie_post_production"
    config_type = MoviePostConfig
    sizes = SIZES
    metrics = METRICS
    aliases: ClassVar[Mapping[str, str]] = {
        "loss/total": "loss",
        "metrics/learning_rate": "learning_rate",
        "metrics/grad_norm": "gradient_norm",
        **{
            f"metrics/{name}": name
            for name in ("alpha_mean", "alpha_fg_ratio", "dino_similarity_mean", "feedback_magnitude", "timestep_mean")
        },
    }

    stages = staticmethod(make_stages)
    build = staticmethod(build_network)
    preview = staticmethod(preview)
    validate = staticmethod(validate)
    example_sizes = staticmethod(example.sizes)
    fill_example = staticmethod(example.fill)
    host_fields = ("boxes",)

    def schema(self, config: MoviePostConfig) -> SampleSchema:
        backbone, instance = config.backbone, config.instance
        return movie_post_production_schema(
            backbone.latent_channels, backbone.text_dim, backbone.pooled_dim, instance.clip_dim, instance.dino_dim
        )

    def open_base(self, config: MoviePostConfig) -> WeightSource:
        return open_folder(
            config.base,
            FluxTransformer2DModel,
            config.backbone.diffusers(),
            config.allow_random_init,
            "the FLUX transformer",
        )

    def check_base(self, config: MoviePostConfig) -> str:
        """Also of the helpers."""
        return f"{super().check_base(config)}; {check_helpers(config.vae, config.dino, config.allow_random_init)}"

    def load_base(
        self, network: nn.Module, config: MoviePostConfig, device: torch.device | str, on_loaded: OnLoaded | None = None
    ) -> str:
        """The backbone's weights, and the helpers beside the network: hidden from its module tree, so that no engine
        partitions them."""
        digest = super().load_base(network, config, device, on_loaded)
        self.attach(network, self.helpers(config, network.stage, device, network.dtype))
        return digest
        return digest

    def attach(self, network: nn.Module, helpers: Mapping[str, nn.Module]) -> None:
        network.__dict__["helpers"] = Helpers(helpers["vae"], helpers.get("dino"))

    def helpers(
        self, config: MoviePostConfig, stage: int, device: torch.device | str, dtype: torch.dtype
    ) -> dict[str, nn.Module]:
        """FLUX's VAE decoder (losses, validation and previews), and from stage 2 on DINOv2."""
        random = config.allow_random_init
        found: dict[str, nn.Module] = {
            "vae": make_decoder(config.vae, config.backbone.latent_channels, device, dtype, random)
        }
        if stage >= IDENTITY_STAGE:
            found["dino"] = make_dino(config.dino, config.instance.dino_dim, device, dtype, random)
        return found
