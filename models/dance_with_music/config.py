"""Sizes of DanceWithMusic: what a recipe may set, checked when it is read.

``champ-sd15`` is CHAMP on Stable Diffusion 1.5, ``svd-xt`` StableAnimator on Stable Video Diffusion; ``tiny`` and
``tiny-svd`` run on a CPU in milliseconds.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from stagecoach.data.dance_with_music.schema import LATENT_CHANNELS, LATENT_STRIDE
from stagecoach.models.common.config import PathText, PictureSize, Section


class DiffusionConfig(Section):
    """Noise and condition dropout. Backbone ``champ``: v-prediction over 1000 DDPM steps with zero terminal SNR;
    ``svd``: EDM preconditioning, sigma drawn from the interpolated cosine schedule of StableAnimator."""

    weighting: Literal["min_snr", "champ", "none"] = "min_snr"
    """min(SNR, 5) / (SNR + 1), the v form of Min-SNR; champ: min(SNR + 1, 5) / (SNR + 1); none: the guide's plain
    mean."""
    snr_gamma: float = Field(5.0, gt=0)
    noise_offset: float = Field(0.05, ge=0, description="[C], per sample and channel, the same in all frames")
    drop_embedding: float = Field(0.1, ge=0, le=1)
    """Per sample, by one draw for all conditions, so that samples without any are met; the null is a zero embedding."""
    drop_face: float = Field(0.1, ge=0, le=1, description="the nulls are zero tokens")
    drop_reference: float = Field(0.1, ge=0, le=1, description="no keys of the reference, or zero latents (svd)")
    drop_guidance: float = Field(0.0, ge=0, le=1, description="nothing is added behind the first convolution")
    dropping: Literal["together", "ranges"] = "together"
    """Of the one draw: all conditions from 0 to their probabilities, or the reference from half of the embedding's on,
    so that samples without one, without the other and without both are met (StableAnimator's code, after arXiv
    2211.09800, section 3.2.1)."""
    reference_noise: float = Field(0.02, ge=0, description="svd: standard deviation added to the reference [A]")
    reference_noise_on: Literal["latents", "pixels"] = "latents"
    """latents: in each training step, none when sampling; pixels: as SVD and StableAnimator have it, before the VAE, in
    shards that were built with --reference-noise and when sampling."""
    fps: int = Field(6, description="svd: what the network is given [A]")
    motion_bucket: int = Field(127, description="svd [A]")


class LossConfig(Section):
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
    confidence: float = Field(0.1, ge=0)
    """cross-entropy of points being there, inside pose_loss; the guide has none, and draws no point's confidence from
    its music."""
    face_mask: float = Field(1.0, ge=1, description="weight of face pixels in the diffusion loss: 1 off, 2 [A]")
    id_kind: Literal["latent", "arcface"] = "latent"
    id_face: float = Field(3.0, gt=0, description="factor of face pixels in the latent identity loss [S]")
    id_steps: int = Field(300, gt=0, description="arcface: only below this timestep, above it the estimate is blurred")
    custom: str | None = Field(None, description="name in models.dance_with_music.losses.CUSTOM_LOSSES")


class ScheduleConfig(Section):
    """The guide's schedules; fractions are of the stage, for the condition scale of stage B's steps."""

    unfreeze: float = Field(0.8, ge=0, le=1, description="MusicToPose trains in stage B from here on")
    sampling: tuple[float, float] = Field((0.8, 1.0), description="over which the poses go from true to predicted [S]")
    m2p_rate: float = Field(0.1, gt=0, description="MusicToPose's learning rate in stage B, as a factor [S]")
    scale: tuple[float, float] = Field((0.5, 1.5), description="of the guidance, at step 0 and from ramp on [S]")
    ramp: float = Field(0.3, gt=0, le=1, description="[S]")
    identity: float = Field(0.05, ge=0, le=1)
    """Over which the identity adapters fade in; not where weights.identity_adapter is given."""
    grown: float = Field(0.8, gt=0, le=1, description="where the longest windows of stage C are reached")


class SamplingConfig(Section):
    """How videos are sampled from noise, in previews and beyond: DDIM steps (``svd``: Euler steps), the scale of
    classifier-free guidance (1: off), and for clips longer than ``context_length`` frames contexts that share
    ``context_overlap`` [C]."""

    steps: int = Field(20, gt=0)
    guidance_scale: float = Field(3.5, ge=1)
    context_length: int = Field(24, gt=1)
    context_overlap: int = Field(4, ge=0)
    shown: int = Field(6, gt=0, description="frames of a preview's strip")

    @model_validator(mode="after")
    def _check(self) -> SamplingConfig:
        if self.context_overlap >= self.context_length:
            raise ValueError(
                f"sampling.context_overlap is {self.context_overlap}, expected less than sampling.context_length, "
                f"{self.context_length}"
            )
        return self


Phase = Literal["m2p", "image", "motion", "joint", "guidance"]
"""What a stage does: A, B and C of the guide, joint fine-tuning after them, or the one stage of guidance training."""


class PictureConfig(PictureSize):
    multiple, key = 8 * LATENT_STRIDE, "picture"

    @property
    def latent(self) -> tuple[int, int]:
        """(h, w)."""
        return self.height // LATENT_STRIDE, self.width // LATENT_STRIDE


class UnetConfig(Section):
    """A UNet of Stable Diffusion's kind, level by level from the finest: ``widths``, and ``attention`` where a level
    has transformer blocks. ``heads``: one number for all levels, or one per level; ``cross_dim``: width of CLIP's
    embedding."""

    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: int = 2
    heads: int | tuple[int, ...] = 8
    cross_dim: int = 768
    groups: int = 32

    @model_validator(mode="after")
    def _check(self) -> UnetConfig:
        if len(self.attention) != len(self.widths) or not any(self.attention):
            raise ValueError(
                f"unet.attention is {list(self.attention)}, expected {len(self.widths)} values as "
                "unet.widths, one of them true"
            )
        if isinstance(self.heads, tuple) and len(self.heads) != len(self.widths):
            raise ValueError(f"unet.heads is {list(self.heads)}, expected one number or {len(self.widths)}")
        return self

    def unet2d(self) -> dict[str, Any]:
        """Arguments of ``diffusers.UNet2DConditionModel``, which its ``config.json`` must agree with."""
        own = {"in_channels": LATENT_CHANNELS, "attention_head_dim": self.heads, "norm_num_groups": self.groups}
        return self._shared("2D") | own

    def motion(self) -> dict[str, Any]:
        """Arguments of ``diffusers.UNetMotionModel`` but for its motion modules."""
        own = {"in_channels": LATENT_CHANNELS, "num_attention_heads": self.heads, "norm_num_groups": self.groups}
        return self._shared("Motion") | own

    def spatio_temporal(self) -> dict[str, Any]:
        """Arguments of ``diffusers.UNetSpatioTemporalConditionModel``."""
        heads = self.heads if isinstance(self.heads, tuple) else (self.heads,) * len(self.widths)
        return self._shared("SpatioTemporal") | {"in_channels": 2 * LATENT_CHANNELS, "num_attention_heads": heads}

    def _shared(self, kind: str) -> dict[str, Any]:
        """``kind``: what diffusers appends to the names of a UNet's blocks."""
        return {
            "out_channels": LATENT_CHANNELS,
            "block_out_channels": self.widths,
            "layers_per_block": self.layers,
            "down_block_types": tuple(f"{'CrossAttn' * there}DownBlock{kind}" for there in self.attention),
            "up_block_types": tuple(f"{'CrossAttn' * there}UpBlock{kind}" for there in reversed(self.attention)),
            "cross_attention_dim": self.cross_dim,
        }


class MotionConfig(Section):
    """AnimateDiff's motion modules (backbone ``champ``, from stage C on): their positional table is computed, not
    learned, so it may be longer than the 32 of the published weights."""

    max_frames: int = Field(160, gt=0)
    heads: int = 8
    layers: int = 1
    mid: bool = True


class M2PConfig(Section):
    """MusicToPose. ``head``: ``factorised``, a distribution over columns and one over rows per point, or ``full2d``,
    one over all pixels through the guide's convolutions. ``resolution``: pixels per side of a heatmap; ``temperature``
    of its softmax; ``music_dim`` as the shards have it: 35 (EDGE's features), 4800 (Jukebox) or any other."""

    music_dim: int = 4800
    hidden: int = 2048
    dim: int = 1024
    layers: int = 6
    heads: int = 8
    feed_forward: int = 4096
    dropout: float = Field(0.1, ge=0, lt=1)
    resolution: int = Field(64, gt=1)
    temperature: float = Field(0.1, gt=0)
    head: Literal["factorised", "full2d"] = "factorised"
    widths: tuple[int, ...] = Field((16, 32, 96, 256), description="of the convolutions of head full2d")

    @model_validator(mode="after")
    def _check(self) -> M2PConfig:
        if self.dim % self.heads:
            raise ValueError(f"m2p.dim is {self.dim}, expected a multiple of m2p.heads, {self.heads}")
        return self


class GuidanceConfig(Section):
    """What is added behind the denoiser's first convolution: the sum of one encoder per type. ``types`` are names of
    ``models.dance_with_music.guidance.types.GUIDANCE_TYPES``. ``inner``: width before the zero-initialised last
    convolution, the guide's 1280, or None for none. ``chunk``: frames that an encoder takes at once. ``map_channels``:
    of the pictures of music that type ``music_map`` is given, as the shards hold them; None makes a channel of each
    number of a row."""

    types: tuple[str, ...] = ("pose",)
    widths: tuple[int, ...] = (16, 32, 96, 256)
    heads: int = 8
    inner: int | None = None
    chunk: int = Field(24, gt=0)
    map_channels: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> GuidanceConfig:
        if self.map_channels is not None and "music_map" not in self.types:
            raise ValueError(
                f"guidance.map_channels is {self.map_channels} but guidance.types {list(self.types)}, expected "
                "music_map among them"
            )
        return self


class FaceConfig(Section):
    """Face tokens and the identity adapters. ``source`` of the face that enters them: the ``reference``'s ArcFace
    vector, or what ``m2p`` makes of the reference, mixed in as its poses are. ``depth`` and ``heads`` of the resampler.
    """

    tokens: int = 4
    depth: int = 4
    heads: int = 16
    source: Literal["reference", "m2p"] = "reference"


class ReferenceConfig(Section):
    """Reference net (backbone ``champ``). ``count``: references of a sample that are used at once, drawn from those it
    has, none from inside the window where that can be. ``adain``: besides the keys and values, the first and second
    moments of the reference's features are taken over (the style transfer of the guide's review)."""

    count: int = Field(1, gt=0)
    adain: bool = False


class FramesConfig(Section):
    """Frames that each stage's window has, ``stride`` apart (30 per second at 1).

    ``m2p``: stage A. ``image``: stage B, what MusicToPose hears, of which ``target`` frames are denoised. ``motion``:
    stage C, from the first number to the second, by step or, as the guide has it, one every ten epochs.
    """

    m2p: int = Field(150, gt=1)
    image: int = Field(24, gt=1)
    target: int = Field(1, gt=0)
    motion: tuple[int, int] = (24, 150)
    growth: Literal["step", "epoch"] = "step"
    guidance: int = Field(16, gt=1)
    stride: int = Field(1, gt=0)

    @model_validator(mode="after")
    def _check(self) -> FramesConfig:
        if self.target > self.image:
            raise ValueError(f"frames.target is {self.target}, expected at most frames.image, {self.image}")
        if not 1 < self.motion[0] <= self.motion[1]:
            raise ValueError(f"frames.motion is {list(self.motion)}, expected two ascending numbers above 1")
        return self


class WeightsConfig(Section):
    """Local paths of published or own weights, part by part; a folder in diffusers layout or a file. A part without one
    is an error unless ``allow_random_init``, but for those that start from another (``identity_adapter``, whose first
    values are the denoiser's own) and for those that rightly start at random (``m2p``, ``guidance``, ``face_tokens``).
    """

    denoising_unet: PathText | None = None
    reference_unet: PathText | None = Field(None, description="None: a copy of the denoiser's")
    motion: PathText | None = None
    m2p: PathText | None = None
    guidance: dict[str, PathText] = Field(default_factory=dict)
    face_tokens: PathText | None = None
    identity_adapter: PathText | None = None
    vae: PathText | None = Field(None, description="decodes previews, and the identity loss's frame")
    arcface: PathText | None = Field(None, description="identity in previews and validation, and the arcface loss")


class DanceConfig(Section):
    """A DanceWithMusic network. ``plan``: the guide's three ``stages``, with ``joint`` a fourth at a low rate, or its
    older single stage of ``guidance`` training. ``m2p_in_motion``: learning rate factor of MusicToPose in stage C, 0
    for frozen."""

    backbone: Literal["champ", "svd"] = "champ"
    plan: Literal["stages", "guidance"] = "stages"
    joint: bool = False
    m2p_in_motion: float = Field(0.0, ge=0)
    picture: PictureConfig
    unet: UnetConfig
    motion: MotionConfig = MotionConfig()
    m2p: M2PConfig = M2PConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    face: FaceConfig = FaceConfig()
    reference: ReferenceConfig = ReferenceConfig()
    frames: FramesConfig = FramesConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    losses: LossConfig = LossConfig()
    schedules: ScheduleConfig = ScheduleConfig()
    sampling: SamplingConfig = SamplingConfig()
    weights: WeightsConfig = WeightsConfig()
    allow_random_init: bool = False

    @model_validator(mode="after")
    def _check(self) -> DanceConfig:
        longest = max(self.frames.motion[1], self.frames.guidance)
        if self.backbone == "champ" and longest > self.motion.max_frames:
            raise ValueError(
                f"motion.max_frames is {self.motion.max_frames}, expected at least the {longest} frames "
                "that frames asks for; the table is computed, so a larger number costs nothing"
            )
        if self.joint and self.plan == "guidance":
            raise ValueError("joint is true and plan is 'guidance', which has one stage; expected plan: stages")
        return self

    def phase(self, stage: int) -> Phase:
        """What stage ``stage``, counted from 1, does."""
        if self.plan == "guidance":
            return "guidance"
        return ("m2p", "image", "motion", "joint")[stage - 1]


_TINY_M2P = M2PConfig(
    music_dim=35, hidden=64, dim=64, layers=2, heads=4, feed_forward=128, dropout=0, resolution=16, widths=(8, 16)
)

SIZES: dict[str, DanceConfig] = {
    "tiny": DanceConfig(
        picture=PictureConfig(height=64, width=64),
        unet=UnetConfig(widths=(32, 64), attention=(True, False), layers=1, heads=4, cross_dim=64, groups=8),
        motion=MotionConfig(heads=4),
        m2p=_TINY_M2P,
        guidance=GuidanceConfig(widths=(8, 16), heads=2),
        face=FaceConfig(depth=1, heads=2),
        frames=FramesConfig(m2p=32, image=16, motion=(6, 12), guidance=6),
        losses=LossConfig(sigma=1.0),
        sampling=SamplingConfig(steps=4, guidance_scale=2.0, context_length=6, context_overlap=2),
        allow_random_init=True,
    ),
    "tiny-svd": DanceConfig(
        backbone="svd",
        picture=PictureConfig(height=64, width=64),
        unet=UnetConfig(widths=(32, 64), attention=(True, False), layers=1, heads=(2, 4), cross_dim=64),
        m2p=_TINY_M2P,
        guidance=GuidanceConfig(types=("pose_net",)),
        face=FaceConfig(depth=1, heads=2),
        frames=FramesConfig(m2p=32, image=16, target=4, motion=(4, 8), guidance=6),
        losses=LossConfig(sigma=1.0),
        sampling=SamplingConfig(steps=4, guidance_scale=2.0, context_length=6, context_overlap=2),
        allow_random_init=True,
    ),
    "champ-sd15": DanceConfig(
        picture=PictureConfig(height=512, width=512),
        unet=UnetConfig(widths=(320, 640, 1280, 1280), attention=(True, True, True, False)),
    ),
    "svd-xt": DanceConfig(
        backbone="svd",
        picture=PictureConfig(height=512, width=512),
        unet=UnetConfig(
            widths=(320, 640, 1280, 1280), attention=(True, True, True, False), heads=(5, 10, 20, 20), cross_dim=1024
        ),
        guidance=GuidanceConfig(types=("pose_net",)),
        frames=FramesConfig(m2p=75, image=16, target=16, motion=(16, 16), guidance=16, stride=2),
        sampling=SamplingConfig(steps=25, guidance_scale=3.0, context_length=16, context_overlap=4),
    ),
}


def pixel_noise(config: DanceConfig) -> float:
    """Standard deviation of the noise on a reference's pixels in -1..1, 0 where there is none."""
    own = config.diffusion
    return own.reference_noise if config.backbone == "svd" and own.reference_noise_on == "pixels" else 0.0
