"""What a recipe may set. Sections are those of the paper (arXiv 2403.03206)."""

from typing import Annotated

from pydantic import Field

from stagecoach.models.common.config import PathText, Section
from stagecoach.models.common.lora import LoraSection, targets_among

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class BackboneConfig(Section):
    """``SD3Transformer2DModel`` of diffusers, by its own names: SD3-medium."""

    num_layers: int = 24
    num_attention_heads: int = 24
    caption_projection_dim: int = Field(1536, description="the blocks' width, 64 for each head")
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 2048
    pos_embed_max_size: int = 192


class StableDiffusion3Config(Section):
    base: PathText | None = Field(None, description="local folder of the transformer in diffusers layout")
    vae: PathText | None = Field(None, description="local folder of the VAE; previews need it")
    allow_random_init: bool = Field(False, description="random weights where base is not set, for tests")
    backbone: BackboneConfig = BackboneConfig()
    lora: Annotated[LoraSection, targets_among(TARGETS)] = LoraSection(targets=TARGETS)
    side: int = Field(1024, multiple_of=16, description="pixels of the square picture that the planner counts for")
    shift: float = Field(3.0, gt=0, description="of the noise level, at 1024 x 1024 pixels (section 5.3.2)")
    caption_dropout: float = Field(0.1, ge=0, lt=1, description="share of the captions that are withheld")
    guidance_scale: float = Field(5.0, ge=0, description="of classifier-free guidance, in previews")


TINY = BackboneConfig(
    num_layers=2, num_attention_heads=2, caption_projection_dim=128, joint_attention_dim=24, pooled_projection_dim=24
)
SIZES = {
    "sd3-medium": StableDiffusion3Config(),
    "tiny": StableDiffusion3Config(backbone=TINY, side=64, allow_random_init=True),
}
