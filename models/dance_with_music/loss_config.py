"""Constants of the DanceWithMusic losses, of its diffusion and of its schedules (embedded in the family's config as
``losses``, ``diffusion``, ``schedules`` and ``sampling``).

``[S]`` is the guide, ``[C]`` CHAMP (arXiv 2403.14781) and its code, ``[A]`` StableAnimator (arXiv 2411.17697).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DiffusionConfig(_Section):
    """Noise and condition dropout. Backbone ``champ``: v-prediction over 1000 DDPM steps with zero terminal SNR;
    ``svd``: EDM preconditioning, sigma drawn from the interpolated cosine schedule of StableAnimator."""

    weighting: Literal["min_snr", "champ", "none"] = Field(
        "min_snr",
        description="min(SNR, 5) / (SNR + 1), the v form of Min-SNR; champ: min(SNR + 1, 5) / (SNR + 1); "
        "none: the seed's plain mean",
    )
    snr_gamma: float = Field(5.0, gt=0)
    noise_offset: float = Field(0.05, ge=0, description="[C], per sample and channel, the same in all frames")
    drop_clip: float = Field(
        0.1,
        ge=0,
        le=1,
        description="per sample, by one draw for all conditions, so that samples "
        "without any are met; the null is a zero embedding",
    )
    drop_face: float = Field(0.1, ge=0, le=1, description="the nulls are zero tokens")
    drop_reference: float = Field(0.1, ge=0, le=1, description="no keys of the reference, or zero latents (svd)")
    drop_guidance: float = Field(0.0, ge=0, le=1, description="nothing is added behind the first convolution")
    reference_noise: float = Field(0.02, ge=0, description="svd: standard deviation added to the reference [A]")
    fps: int = Field(6, description="svd: what the network is told [A]")
    motion_bucket: int = Field(127, description="svd [A]")


class LossConfig(_Section):
    """Weights of the loss terms and what they are made of."""

    pose_weight: float = Field(0.5, ge=0, description="[S]")
    face_weight: float = Field(0.1, ge=0, description="[S]")
    diffusion_weight: float = Field(1.0, ge=0, description="[S]")
    id_weight: float = Field(0.1, ge=0, description="[S]")
    temporal_weight: float = Field(0.1, ge=0, description="[S]")
    custom_weight: float = Field(0.1, ge=0, description="of the custom loss, where one is named [S]")
    sigma: float = Field(2.0, gt=0, description="pixels of the heatmap's Gaussian at the M2P's resolution [S]")
    coordinates: float = Field(0.5, ge=0, description="L1 of the soft-argmax, inside pose_loss [S]")
    velocity: float = Field(0.1, ge=0, description="L1 of its differences over time [S]")
    confidence: float = Field(
        0.1,
        ge=0,
        description="cross-entropy of points being there, inside pose_loss; the guide "
        "has none, and draws no point's confidence from its music",
    )
    face_mask: float = Field(1.0, ge=1, description="weight of face pixels in the diffusion loss: 1 off, 2 [A]")
    id_kind: Literal["latent", "arcface"] = "latent"
    id_face: float = Field(3.0, gt=0, description="factor of face pixels in the latent identity loss [S]")
    id_steps: int = Field(300, gt=0, description="arcface: only below this timestep, above it the estimate is blurred")
    custom: str | None = Field(None, description="name in models.dance_with_music.custom_loss.CUSTOM_LOSSES")


class ScheduleConfig(_Section):
    """The guide's schedules; fractions are of the stage, for the condition scale of stage B's steps."""

    unfreeze: float = Field(0.8, ge=0, le=1, description="MusicToPose trains in stage B from here on")
    sampling: tuple[float, float] = Field((0.8, 1.0), description="over which the poses go from true to predicted [S]")
    m2p_rate: float = Field(0.1, gt=0, description="MusicToPose's learning rate in stage B, as a factor [S]")
    scale: tuple[float, float] = Field((0.5, 1.5), description="of the guidance, at step 0 and from ramp on [S]")
    ramp: float = Field(0.3, gt=0, le=1, description="[S]")
    identity: float = Field(
        0.05,
        ge=0,
        le=1,
        description="over which the identity adapters fade in; not where weights.identity_adapter is given",
    )
    grown: float = Field(0.8, gt=0, le=1, description="where the longest windows of stage C are reached")


class SamplingConfig(_Section):
    """How videos are drawn from noise, in previews and beyond: DDIM steps (``svd``: Euler steps), classifier-free
    guidance (1: off), and for clips longer than ``window`` frames windows that share ``overlap`` [C]."""

    steps: int = Field(20, gt=0)
    guidance: float = Field(3.5, ge=1)
    window: int = Field(24, gt=1)
    overlap: int = Field(4, ge=0)
    shown: int = Field(6, gt=0, description="frames of a preview's strip")

    @model_validator(mode="after")
    def _check(self) -> SamplingConfig:
        if self.overlap >= self.window:
            raise ValueError(f"sampling.overlap is {self.overlap}, expected less than sampling.window, {self.window}")
        return self
