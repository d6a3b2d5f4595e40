"""MoviePostProduction as the trainer sees it."""

from collections.abc import Mapping
from typing import ClassVar

from diffusers import FluxTransformer2DModel

from stagecoach.data.format.schema import SampleSchema
from stagecoach.data.movie_post_production.schema import movie_post_production_schema
from stagecoach.models.common.materialise import WeightSource, open_folder
from stagecoach.models.family import Family
from stagecoach.models.movie_post_production import example
from stagecoach.models.movie_post_production.config import SIZES, MoviePostConfig
from stagecoach.models.movie_post_production.helpers import check_helpers, make_helpers
from stagecoach.models.movie_post_production.network import build_network
from stagecoach.models.movie_post_production.preview import preview
from stagecoach.models.movie_post_production.stages import METRICS, make_stages
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
        return f"{super().check_base(config)}; {check_helpers(config)}"

    helpers = staticmethod(make_helpers)
