"""FantasyWorld as the trainer sees it."""

from diffusers import WanTransformer3DModel

from stagecoach.data.fantasy_world.schema import fantasy_world_schema
from stagecoach.data.format.schema import SampleSchema
from stagecoach.models.common.materialise import WeightSource, open_folder
from stagecoach.models.family import Family
from stagecoach.models.fantasy_world import example
from stagecoach.models.fantasy_world.backbone import base_name
from stagecoach.models.fantasy_world.config import SIZES, FantasyWorldConfig
from stagecoach.models.fantasy_world.network import build_network
from stagecoach.models.fantasy_world.preview import preview
from stagecoach.models.fantasy_world.stages import METRICS, make_stages
from stagecoach.models.fantasy_world.validate import validate


class FantasyWorldFamily(Family):
    """A frozen Wan2.1 video transformer with a geometry branch; stages latent bridging and unified co-optimisation."""

    name = "fantasy_world"
    config_type = FantasyWorldConfig
    sizes = SIZES
    metrics = METRICS

    stages = staticmethod(make_stages)
    build = staticmethod(build_network)
    preview = staticmethod(preview)
    validate = staticmethod(validate)
    example_sizes = staticmethod(example.sizes)
    fill_example = staticmethod(example.fill)

    def schema(self, config: FantasyWorldConfig) -> SampleSchema:
        backbone = config.backbone
        return fantasy_world_schema(
            backbone.out_channels, backbone.text_dim, config.image_to_video, backbone.image_dim or 0
        )

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
