"""MoviePostProduction as the trainer sees it."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor

from stagecoach.data.format.schema import SampleSchema
from stagecoach.data.movie_post_production.schema import movie_post_production_schema
from stagecoach.models.common.licences import APACHE, FLUX_DEV, MIT, Part
from stagecoach.models.common.materialise import WeightSource, open_folder
from stagecoach.models.family import Batch, Family
from stagecoach.models.movie_post_production.config import PATCH, SIZES, MoviePostConfig
from stagecoach.models.movie_post_production.helpers import check_helpers, make_helpers
from stagecoach.models.movie_post_production.network import build_network
from stagecoach.models.movie_post_production.preview import SAMPLED, preview, sampled
from stagecoach.models.movie_post_production.stages import METRICS, make_stages
from stagecoach.models.movie_post_production.validate import validate

REFERENCES = 18
"""Objects of a picture in DenseLayout, the guide's data set, on average."""
COVER = 2.0
"""How often a token is covered, on average."""


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

    parts: ClassVar[Mapping[str, tuple[Part, ...]]] = {
        "flux-dev": (
            Part("transformer, VAE, text encoders", "black-forest-labs/FLUX.1-dev", FLUX_DEV, base=True),
            Part("CLIP of references", "openai/clip-vit-large-patch14", MIT),
            Part("DINOv2 of references", "facebook/dinov2-large", APACHE),
        )
    }
    stages = staticmethod(make_stages)
    build = staticmethod(build_network)
    preview = staticmethod(preview)
    validate = staticmethod(validate)
    sampled = staticmethod(sampled)
    sampled_metrics = SAMPLED
    host_fields = ("boxes",)

    def schema(self, config: MoviePostConfig) -> SampleSchema:
        backbone, instance = config.backbone, config.instance
        return movie_post_production_schema(
            backbone.latent_channels, backbone.text_dim, backbone.pooled_dim, instance.clip_dim, instance.dino_dim
        )

    def open_base(self, config: MoviePostConfig) -> WeightSource:
        settings, random = config.backbone.diffusers(), config.allow_random_init
        return open_folder(config.base, FluxTransformer2DModel, settings, random, "the FLUX transformer")

    def check_base(self, config: MoviePostConfig) -> str:
        """Also of the helpers."""
        return f"{super().check_base(config)}; {check_helpers(config)}"

    helpers = staticmethod(make_helpers)

    def diffusers_lora(self, config: MoviePostConfig, stage: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of ``lora.scope: global`` alone: what was trained inside boxes a pipeline would run on the whole picture."""
        if config.lora.scope != "global":
            raise ValueError(
                f"the LoRA was active inside boxes alone (lora.scope: {config.lora.scope}), and a pipeline of "
                "diffusers, which knows no boxes, would run it on the whole picture, which is another model; sample "
                "with MoviePostPipeline, or train with lora.scope: global"
            )
        return super().diffusers_lora(config, stage, tensors)

    def example_sizes(self, config: MoviePostConfig, stage: int) -> dict[str, int]:
        h, w = (PATCH * side for side in config.image.grid)
        return {
            "h": h,
            "w": w,
            "H": config.image.height,
            "W": config.image.width,
            "L": config.backbone.text_length,
            "N": min(config.instance.max_refs, REFERENCES),
        }

    def generation(self, weights, options):
        from stagecoach.models.movie_post_production.generate import MoviePostGeneration  # its pipeline opens families

        return MoviePostGeneration(weights, options)

    def fill_example(self, batch: Batch, config: MoviePostConfig) -> None:
        """Square boxes anywhere, that together cover a picture ``COVER`` times; unit vectors; all three depths. Boxes
        have values on the meta device too, since the lengths of the segments follow from them."""
        boxes, count = batch["boxes"], batch["boxes"].shape[1]
        half = min(0.5, 0.5 * (COVER / count) ** 0.5)
        middle = half + (1 - 2 * half) * torch.special.ndtr(boxes[..., :2])
        boxes.copy_(torch.cat([middle - half, middle + half], -1).clamp(0, 1))
        batch["depth"].remainder_(3)
        for name in ("clip", "dino"):
            batch[name] = F.normalize(batch[name].float(), dim=-1).to(batch[name].dtype)
