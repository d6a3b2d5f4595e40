"""Constants of the MoviePostProduction losses, of its sampler and of its frozen helpers (embedded in the family's
config as ``losses``, ``sampling``, ``vae`` and ``dino``).

``[S]`` is the guide, ``[X]`` XVerse (arXiv 2506.21416), ``[F]`` FLUX.1 as diffusers has it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FlowMatchingConfig(_Section):
    """How timesteps are drawn and what the network is told of guidance while it trains."""

    t_sampling: Literal["logit_normal", "uniform"] = Field(
        "logit_normal", description="t = sigmoid(n), n standard normal; uniform is the seed's"
    )
    shift: Literal["resolution", "none"] = Field(
        "resolution", description="move t by the number of tokens as FLUX's scheduler does [F]; the seed does not"
    )
    guidance: float = Field(
        1.0,
        ge=0,
        description="FLUX.1-dev is distilled: told 3.5, the seed's, its output is an "
        "extrapolated velocity, told 1 it is nearly the mean that flow "
        "matching asks for",
    )


class IdentityConfig(_Section):
    """The DINO identity loss: how much of the picture is decoded, for which references, at which timesteps."""

    decode: Literal["crop", "full"] = Field(
        "crop", description="crop: a window of the latent around each box; full: the whole picture, once per sample"
    )
    window: int = Field(
        32, ge=2, description="side of that window in latents; a box that needs a larger one is made smaller to fit"
    )
    margin: int = Field(8, ge=0, description="latents around the box that the decoder sees besides, its context")
    crops: int = Field(4, ge=1, description="references of each sample that are drawn for the loss")
    t_max: float = Field(
        0.6,
        gt=0,
        le=1,
        description="no identity is asked of a picture noisier than this, whose "
        "estimate is blurred; the seed has no limit: 1",
    )
    warmup: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="part of the stage over which the loss's weight rises from 0; "
        "modulation starts at nothing, and 10 (1 - cos) is some ten "
        "times the flow-matching loss; the seed: 0",
    )


class LossConfig(_Section):
    """Weights of the loss terms and what they are made of."""

    flow_matching: FlowMatchingConfig = FlowMatchingConfig()
    identity: IdentityConfig = IdentityConfig()
    flow_matching_weight: float = Field(1.0, ge=0, description="[S]")
    identity_weight: float = Field(10.0, ge=0, description="stages 2 and 3 [S]; XVerse's 10 is of an L2 loss [X]")
    in_box_weight: float = Field(0.0, ge=0, description="flow-matching error once more, over the boxes only")
    alpha_prior: Literal["none", "depth", "mean"] = Field(
        "none",
        description="alpha cannot be told from the data alone. depth: cross entropy to 0.8, 0.5, 0.2 for "
        "foreground, midground, background; mean: squared distance of a picture's mean from 0.5",
    )
    alpha_prior_weight: float = Field(0.01, ge=0)


class SamplingConfig(_Section):
    """Previews: Euler steps over FLUX's shifted sigmas."""

    steps: int = Field(28, ge=1)
    guidance: float = Field(3.5, ge=0)
    layout_part: float = Field(
        1.0,
        ge=0,
        le=1,
        description="part of the steps, from the first, with references; InstanceAssemble publishes 0.3",
    )


class VaeConfig(_Section):
    """FLUX's VAE, used frozen. ``base``: its local folder in diffusers layout; without one, where the family's config
    allows a random base, the decoder has random weights and the widths below."""

    base: str | None = None
    channels: tuple[int, int, int, int] = (128, 256, 512, 512)
    layers: int = 2
    groups: int = 32
    shift: float = 0.1159
    scale: float = 0.3611


class DinoConfig(_Section):
    """DINOv2, used frozen from stage 2 on; ``base`` must be the encoder that the shards' ``dino`` vectors come from.
    Without one as for ``VaeConfig``."""

    base: str | None = None
    layers: int = 24
    heads: int = 16
    mlp_ratio: int = 4
    size: int = Field(224, description="side of a crop in pixels")
