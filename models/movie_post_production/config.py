"""Sizes of MoviePostProduction: what a recipe may set, checked when it is read.

``flux-dev`` is FLUX.1-dev with the widths of the guide; ``tiny`` runs on a CPU in milliseconds. ``[S]`` is the guide,
``[X]`` XVerse (arXiv 2506.21416), ``[F]`` FLUX.1 as diffusers has it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stagecoach.models.common.config import PathText, PictureSize, Section
from stagecoach.models.common.lora import LoraSection, targets_among


class FlowMatchingConfig(Section):
    """How timesteps are drawn and what the network is given of guidance while it trains."""

    t_sampling: Literal["logit_normal", "uniform"] = "logit_normal"
    """t = sigmoid(n), n standard normal; uniform is the guide's."""
    shift: Literal["resolution", "none"] = "resolution"
    """Move t by the number of tokens as FLUX's scheduler does [F]; the seed does not."""
    guidance_scale: float = Field(1.0, ge=0)
    """FLUX.1-dev is distilled: given 3.5, as in profile reference, its output is an extrapolated velocity, given 1 it
    is nearly the mean that flow matching asks for."""


class IdentityConfig(Section):
    """The DINO identity loss: how much of the picture is decoded, for which references, at which timesteps."""

    decode: Literal["crop", "full"] = "crop"
    """crop: a tile of the latent around each box; full: the whole picture, once per sample."""
    tile: int = Field(32, ge=2)
    """Side of that tile in latents; a box that needs a larger one is made smaller to fit."""
    margin: int = Field(8, ge=0, description="latents around the box that the decoder sees besides, its context")
    crops: int = Field(4, ge=1, description="references of each sample that are drawn for the loss")
    t_max: float = Field(0.6, gt=0, le=1)
    """No identity is asked of a picture noisier than this, whose estimate is blurred; the loss of the others is divided
    by their share of all draws, so that ``identity_weight`` is what it says. The seed has no limit: 1."""
    warmup: float = Field(0.01, ge=0, lt=1)
    """Fraction of the stage over which the loss's weight rises from 0; modulation starts at nothing, and 10 (1 - cos)
    is some ten times the flow-matching loss; the seed: 0."""


class LossConfig(Section):
    """Weights of the loss terms and what they are made of."""

    flow_matching: FlowMatchingConfig = FlowMatchingConfig()
    identity: IdentityConfig = IdentityConfig()
    flow_matching_weight: float = Field(1.0, ge=0, description="[S]")
    identity_weight: float = Field(10.0, ge=0, description="stages 2 and 3 [S]; XVerse's 10 is of an L2 loss [X]")
    in_box_weight: float = Field(0.0, ge=0, description="flow-matching error once more, over the boxes only")
    alpha_prior: Literal["none", "depth", "mean"] = "none"
    """Alpha cannot be learned from the data alone. depth: cross entropy to 0.8, 0.5, 0.2 for foreground, midground,
    background; mean: squared distance of a picture's mean from 0.5."""
    alpha_prior_weight: float = Field(0.01, ge=0)


class SamplingConfig(Section):
    """Previews: Euler steps over FLUX's shifted sigmas."""

    steps: int = Field(28, ge=1)
    guidance_scale: float = Field(3.5, ge=0)
    layout_fraction: float = Field(1.0, ge=0, le=1)
    """Of the steps, from the first, with references; InstanceAssemble publishes 0.3."""


class VaeConfig(Section):
    """FLUX's VAE, used frozen. ``base``: its local folder in diffusers layout; without one, where the family's config
    allows a random base, the decoder has random weights and the widths below."""

    base: PathText | None = None
    channels: tuple[int, int, int, int] = (128, 256, 512, 512)
    layers: int = 2
    groups: int = 32
    shift: float = 0.1159
    scale: float = 0.3611


class DinoConfig(Section):
    """DINOv2, used frozen from stage 2 on; ``base`` must be the encoder that the shards' ``dino`` vectors come from.
    Without one as for ``VaeConfig``."""

    base: PathText | None = None
    layers: int = 24
    heads: int = 16
    mlp_ratio: int = 4
    size: int = Field(224, description="side of a crop in pixels")


VAE_STRIDE = 8
"""Pixels per latent."""
PATCH = 2
"""Latents per token along height and width."""
DOUBLE_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_out.0",
    "to_add_out",
    "norm1.linear",
    "norm1_context.linear",
    "ff.net.2",
    "ff_context.net.2",
)
SINGLE_TARGETS = ("to_q", "to_k", "to_v", "norm.linear", "proj_mlp", "proj_out")
"""Linear layers of the two kinds of block that may carry LoRA, by the ends of their names."""


class ImageConfig(PictureSize):
    multiple, key = VAE_STRIDE * PATCH, "image"

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) in tokens."""
        return self.height // (VAE_STRIDE * PATCH), self.width // (VAE_STRIDE * PATCH)

    @property
    def tokens(self) -> int:
        h, w = self.grid
        return h * w


class BackboneConfig(Section):
    """The frozen FLUX transformer. ``text_length``: T5 tokens, padding included, that the planner counts for."""

    double_blocks: int
    single_blocks: int
    heads: int
    head_dim: int
    rope_axes: tuple[int, int, int]
    latent_channels: int = 16
    text_dim: int = 4096
    pooled_dim: int = 768
    text_length: int = 512
    guidance_embeds: bool = True

    @model_validator(mode="after")
    def _check(self) -> BackboneConfig:
        if sum(self.rope_axes) != self.head_dim or any(axis % 2 for axis in self.rope_axes):
            raise ValueError(
                f"backbone.rope_axes is {self.rope_axes}, expected three even numbers that add up to "
                f"head_dim {self.head_dim}"
            )
        return self

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    def diffusers(self) -> dict:
        """Arguments of ``diffusers.FluxTransformer2DModel``; also what its ``config.json`` must say."""
        return {
            "patch_size": 1,
            "in_channels": PATCH * PATCH * self.latent_channels,
            "num_layers": self.double_blocks,
            "num_single_layers": self.single_blocks,
            "attention_head_dim": self.head_dim,
            "num_attention_heads": self.heads,
            "joint_attention_dim": self.text_dim,
            "pooled_projection_dim": self.pooled_dim,
            "guidance_embeds": self.guidance_embeds,
            "axes_dims_rope": self.rope_axes,
        }


class InstanceConfig(Section):
    """What a reference becomes before it enters the backbone: alpha and one token.

    ``max_refs``: objects that a picture may have; ``clip_dim``, ``dino_dim``: widths of the crops' vectors; ``points``
    per side of the grid laid over a box, ``frequencies`` of its Fourier features; ``alpha_hidden``: width of the alpha
    predictor; ``text``: category and caption of the object enter too, through a projection that starts at zero. The
    dropouts withhold the crops of a reference (learned nulls stand in), its text, and all references of a picture.
    """

    max_refs: int = Field(50, gt=0)
    clip_dim: int = 768
    dino_dim: int = 1024
    points: int = Field(4, gt=0)
    frequencies: int = Field(16, gt=0)
    alpha_hidden: int = 256
    text: bool = True
    reference_dropout: float = Field(0.1, ge=0, le=1)
    layout_dropout: float = Field(0.1, ge=0, le=1)
    text_dropout: float = Field(0.1, ge=0, le=1)

    @property
    def spatial_dim(self) -> int:
        """Points x 2 coordinates x frequencies x (sin, cos)."""
        return self.points**2 * 2 * self.frequencies * 2


class LayoutConfig(Section):
    """Assemble-Attn: in which blocks, and how references that overlap share a token.

    ``overlap``: ``average`` over all that cover it, or ``depth``, over the nearest by depth label. ``layout_min``: the
    weight of a reference goes from 1 at alpha 0 down to this at alpha 1. ``second_ff``: InstanceAssemble's second pass
    of the image feed-forward behind the layout residual, with which a new adapter is not the identity. ``warmup``: part
    of stage 1 over which the layout residual is faded in.
    """

    double_blocks: tuple[int, ...]
    single_blocks: tuple[int, ...] = (0,)
    layout_min: float = Field(0.0, ge=0, le=1)
    overlap: Literal["average", "depth"] = "average"
    second_ff: bool = False
    warmup: float = Field(0.0, ge=0, lt=1)


class LoraConfig(LoraSection):
    """LoRA in the layout branch of the layout blocks only, the base path staying FLUX, or ``global``, in the ordinary
    path of every block. ``lr_scale`` is on the stage's rate."""

    rank: int = Field(128, gt=0)
    alpha: float = Field(128, gt=0)
    scope: Literal["layout_branch", "global"] = "layout_branch"
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
    lr_scale: float = Field(1.0, gt=0)


class ModulationConfig(Section):
    """Offsets of AdaLN inside the boxes: ``temb`` adds vectors to the embedding of time and text; ``scalar12`` is the
    guide's, twelve numbers per block. ``rank``: of the per-block projections, None for full matrices."""

    space: Literal["temb", "scalar12"] = "temb"
    rank: int | None = Field(None, gt=0)


class FeedbackConfig(Section):
    """Bridges from what a block found in a box to the modulation of the next block: ``full`` or ``low_rank``."""

    kind: Literal["low_rank", "full"] = "low_rank"
    rank: int = Field(16, gt=0)


class MoviePostConfig(Section):
    """A MoviePostProduction network. ``base`` is the local folder of the transformer in diffusers layout; None with
    ``allow_random_init`` gives weights drawn by tensor name, for tests and benchmarks."""

    image: ImageConfig
    backbone: BackboneConfig
    instance: InstanceConfig = InstanceConfig()
    layout: LayoutConfig
    lora: Annotated[LoraConfig, targets_among(DOUBLE_TARGETS + SINGLE_TARGETS)] = LoraConfig()
    modulation: ModulationConfig = ModulationConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    losses: LossConfig = LossConfig()
    sampling: SamplingConfig = SamplingConfig()
    vae: VaeConfig = VaeConfig()
    dino: DinoConfig = DinoConfig()
    base: PathText | None = None
    allow_random_init: bool = False

    @model_validator(mode="after")
    def _check(self) -> MoviePostConfig:
        for kind in ("double_blocks", "single_blocks"):
            chosen, count = getattr(self.layout, kind), getattr(self.backbone, kind)
            if list(chosen) != sorted(set(chosen)) or any(not 0 <= i < count for i in chosen):
                raise ValueError(
                    f"layout.{kind} is {list(chosen)}, expected ascending numbers of the backbone's "
                    f"{count} blocks, from 0"
                )
            if not chosen:  # the layout tokens of the last double block are for the single ones
                raise ValueError(f"layout.{kind} is empty, expected at least one block")
        if self.lora.scope == "layout_branch" and not self.layout.second_ff and "ff.net.2" in self.lora.targets:
            raise ValueError(
                "lora.targets holds 'ff.net.2', which the layout branch runs only with layout.second_ff; "
                "set it or leave the target out"
            )
        return self


SIZES: dict[str, MoviePostConfig] = {
    "tiny": MoviePostConfig(
        image=ImageConfig(height=64, width=64),
        backbone=BackboneConfig(
            double_blocks=4,
            single_blocks=2,
            heads=2,
            head_dim=16,
            rope_axes=(4, 6, 6),
            text_dim=24,
            pooled_dim=20,
            text_length=6,
        ),
        instance=InstanceConfig(max_refs=8, clip_dim=12, dino_dim=16, points=2, frequencies=2, alpha_hidden=16),
        layout=LayoutConfig(double_blocks=(0, 3)),
        lora=LoraConfig(rank=4, alpha=4),
        feedback=FeedbackConfig(rank=2),
        losses=LossConfig(identity=IdentityConfig(tile=8, margin=2, crops=2)),
        sampling=SamplingConfig(steps=4),
        vae=VaeConfig(channels=(8, 8, 8, 8), layers=1, groups=4),
        dino=DinoConfig(layers=2, heads=2, mlp_ratio=2, size=28),
        allow_random_init=True,
    ),
    "flux-dev": MoviePostConfig(
        image=ImageConfig(height=1024, width=1024),
        backbone=BackboneConfig(double_blocks=19, single_blocks=38, heads=24, head_dim=128, rope_axes=(16, 56, 56)),
        layout=LayoutConfig(double_blocks=(0, 3, 6, 9, 12, 15, 18)),
    ),
}
