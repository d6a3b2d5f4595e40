"""Constants of the FantasyWorld losses (embedded in the family's config as ``losses``)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LossConfig(BaseModel):
    """Weights and constants of the losses.

    ``[P]`` is the FantasyWorld paper (arXiv 2509.21657), ``[V]`` VGGT's training losses, ``[D]`` Video-Depth-Anything.
    The paper gives neither the weights of the two depth parts nor the weight of the geometry in stage 2; 1 is taken,
    as the public re-implementation does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Weights of the loss terms in the step's loss.
    depth_weight: float = Field(1.0, ge=0, description="L_depth in L_geo [P]")
    points_weight: float = Field(1.0, ge=0, description="L_pmap in L_geo [P]")
    camera_weight: float = Field(3.0, ge=0, description="L_camera in L_geo [P]")
    diffusion_weight: float = Field(1.0, ge=0, description="L_diff in L_total, stage 2 [P]")
    geometry_weight: float = Field(1.0, ge=0, description="lambda: L_geo in L_total, stage 2")

    # Flow matching.
    shift: float = Field(5.0, gt=0, description="sigma = shift u / (1 + (shift - 1) u); 5 is Wan's and the seed's")
    sigma_grid: int | None = Field(
        None,
        ge=2,
        description="draw sigma from a grid of so many steps (the seed: 1000); None draws u from the whole of (0, 1]",
    )
    diffusion_weighting: Literal["uniform", "bell"] = Field(
        "uniform",
        description="uniform: the paper's plain squared error, which trains at pure noise too, where the "
        "camera path is decided; bell: the seed's weight, 0 there",
    )

    # Depth and points.
    depth_temporal: float = Field(1.0, ge=0, description="alpha: weight of temporal gradient matching; [D] takes 10")
    depth_frame: float = Field(1.0, ge=0, description="beta: weight of the frame-wise scale-sensitive part in L_depth")
    temporal_change: float = Field(
        0.05,
        gt=0,
        description="TGM looks at pixels whose true depth changes by less than "
        "this part of the frame's depth range [D]",
    )
    confidence_gamma: float = Field(1.0, gt=0, description="weight of the error times confidence [V]")
    confidence_alpha: float = Field(0.2, ge=0, description="weight of -log confidence [V]")
    gradient_scales: int = Field(4, ge=1, description="image gradients are compared at strides 1, 2, 4, ... [V]")
    error_clamp: float = Field(100.0, gt=0, description="errors of a pixel above this count as this [V]")
    error_quantile: float = Field(
        0.98,
        gt=0,
        le=1,
        description="part of a sample's valid pixels that train: those with the smallest errors; 1 keeps all [V]",
    )

    # Camera.
    translation_weight: float = Field(1.0, ge=0, description="[V]")
    rotation_weight: float = Field(1.0, ge=0, description="[V]")
    fov_weight: float = Field(0.5, ge=0, description="[V]")
    huber_delta: float = Field(
        0.1,
        gt=0,
        description="quadratic below, linear with slope 1 above; 1 is the plain "
        "Huber loss, whose slope at the error that is asked for, 0.05, "
        "is small",
    )
    refinement_decay: float = Field(
        0.6, gt=0, le=1, description="weight of an earlier refinement iteration against the next one [V]"
    )
