"""Sizes of FantasyWorld: what a recipe may set, checked when it is read.

Widths of ``wan2.1-1.3b`` are chosen so that the trainable parameters are those the seed states (956 M and 1,186 M
within 3 %); ``wan2.1-1.3b-i2v`` has the same on Wan2.1-Fun-1.3B-InP, whose blocks, and so the geometry's, also attend
to CLIP's picture states; those of ``wan2.1-14b`` are the published model's.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stagecoach.models.common.config import PathText, PictureSize, Section


class LossConfig(Section):
    """Weights and constants of the losses.

    ``[P]`` is the FantasyWorld paper (arXiv 2509.21657), ``[V]`` VGGT's training losses, ``[D]`` Video-Depth-Anything.
    The paper gives neither the weights of the two depth parts nor the weight of the geometry in stage 2; 1 is taken,
    as the public re-implementation does.
    """

    # Weights of the loss terms in the step's loss.
    depth_weight: float = Field(1.0, ge=0, description="L_depth in L_geo [P]")
    points_weight: float = Field(1.0, ge=0, description="L_pmap in L_geo [P]")
    camera_weight: float = Field(3.0, ge=0, description="L_camera in L_geo [P]")
    diffusion_weight: float = Field(1.0, ge=0, description="L_diff in L_total, stage 2 [P]")
    geometry_weight: float = Field(1.0, ge=0, description="lambda: L_geo in L_total, stage 2")

    # Flow matching.
    shift: float = Field(5.0, gt=0, description="sigma = shift u / (1 + (shift - 1) u); 5 is Wan's and the guide's")
    sigma_grid: int | None = Field(None, ge=2)
    """Draw sigma from a grid of so many steps (the seed: 1000); None draws u from the whole of (0, 1]."""
    diffusion_weighting: Literal["uniform", "bell"] = "uniform"
    """uniform: the paper's plain squared error, which trains at pure noise too, where the camera path is decided; bell:
    the guide's weight, 0 there."""

    # Depth and points.
    depth_temporal: float = Field(1.0, ge=0, description="alpha: weight of temporal gradient matching; [D] takes 10")
    depth_frame: float = Field(1.0, ge=0, description="beta: weight of the frame-wise scale-sensitive part in L_depth")
    temporal_change: float = Field(0.05, gt=0)
    """TGM looks at pixels whose true depth changes by less than this fraction of the frame's depth range [D]."""
    confidence_gamma: float = Field(1.0, gt=0, description="weight of the error times confidence [V]")
    confidence_alpha: float = Field(0.2, ge=0, description="weight of -log confidence [V]")
    gradient_scales: int = Field(4, ge=1, description="image gradients are compared at strides 1, 2, 4, ... [V]")
    error_clamp: float = Field(100.0, gt=0, description="errors of a pixel above this count as this [V]")
    error_quantile: float = Field(0.98, gt=0, le=1)
    """Part of a sample's valid pixels that train: those with the smallest errors; 1 keeps all [V]."""

    # Camera. Weights of the means over 3 translations, 4 numbers of the quaternion and 2 fields of view.
    translation_weight: float = Field(1.0, ge=0, description="[V]")
    rotation_weight: float = Field(1.0, ge=0, description="[V]")
    fov_weight: float = Field(0.5, ge=0, description="[V]")
    huber_delta: float = Field(0.1, gt=0)
    """Quadratic below, linear with slope 1 above; 1 is the plain Huber loss, whose slope at the error that is asked
    for, 0.05, is small."""
    refinement_decay: float = Field(0.6, gt=0, le=1)
    """Weight of an earlier refinement iteration against the next one [V]."""


VAE_TIME, VAE_SPACE = 4, 8
"""Strides of the Wan VAE: 4(f - 1) + 1 frames of 8h x 8w pixels make f latent frames of h x w."""
PATCH = 2
"""Latent pixels per token along height and width; one latent frame per token."""
SPECIAL_TOKENS = 5
"""One camera and four register tokens in front of each latent frame's patch tokens (VGGT)."""


class ClipConfig(PictureSize):
    """The clip a sample holds: ``frames`` = 4(f - 1) + 1, height and width in pixels, multiples of 16."""

    multiple, key = VAE_SPACE * PATCH, "clip"
    frames: int = Field(gt=0)

    @model_validator(mode="after")
    def _check(self) -> ClipConfig:
        if self.frames % VAE_TIME != 1:
            raise ValueError(
                f"clip.frames is {self.frames}, expected 4(f - 1) + 1, such as "
                f"{VAE_TIME * (self.frames // VAE_TIME) + 1}"
            )
        return self

    @property
    def latent(self) -> tuple[int, int, int]:
        """(f, h, w) of the VAE latent."""
        return (self.frames - 1) // VAE_TIME + 1, self.height // VAE_SPACE, self.width // VAE_SPACE

    @property
    def grid(self) -> tuple[int, int, int]:
        """(f, h, w) in tokens."""
        f, h, w = self.latent
        return f, h // PATCH, w // PATCH

    @property
    def tokens(self) -> int:
        """Tokens of the video stream; the geometry stream has ``SPECIAL_TOKENS`` more per latent frame."""
        f, h, w = self.grid
        return f * h * w


class BackboneConfig(Section):
    """The frozen Wan2.1 transformer. ``image_dim`` set means image-to-video: 4 mask and 16 image channels next to the
    noise, and CLIP states [257, image_dim] in the cross-attention."""

    layers: int
    heads: int
    head_dim: int
    ffn_dim: int
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    text_length: int = 512
    freq_dim: int = 256
    image_dim: int | None = None

    @model_validator(mode="after")
    def _check(self) -> BackboneConfig:
        if self.image_dim is not None and self.text_length != 512:
            raise ValueError(
                f"backbone.text_length is {self.text_length}, expected 512: the image-to-video "
                "cross-attention of diffusers takes the last 512 states for the text"
            )
        return self

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    def diffusers(self) -> dict:
        """Arguments of ``diffusers.WanTransformer3DModel``; also what its ``config.json`` must say."""
        return {
            "patch_size": (1, PATCH, PATCH),
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head_dim,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "text_dim": self.text_dim,
            "freq_dim": self.freq_dim,
            "ffn_dim": self.ffn_dim,
            "num_layers": self.layers,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "eps": 1e-6,
            "image_dim": self.image_dim,
            "added_kv_proj_dim": self.dim if self.image_dim else None,
        }


class BridgeConfig(Section):
    """The latent bridge of the ``wan`` geometry: a small transformer at ``width`` (the ``aggregator`` projects)."""

    width: int = 384
    heads: int = 6
    layers: int = 2
    ffn_dim: int = 1536


class AggregatorConfig(Section):
    """The VGGT aggregator as geometry branch: one pair of frame and global block per IRG layer."""

    dim: int = 1024
    heads: int = 16
    mlp_ratio: int = 4
    pose_hidden: int = 128


class CameraControlConfig(Section):
    """Camera adapters inside the video's cross-attention, next to the ``aggregator``: in the first ``layers``
    blocks."""

    layers: int = 25
    features: int = 2048
    hidden: int = 1024
    rank: int = 409


class InteractionConfig(Section):
    """Bi-directional cross-attention of an IRG layer."""

    heads: int
    head_dim: int

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class DPTConfig(Section):
    """Dense heads. ``taps``: 1-based IRG layers, shallow to deep. ``channels``: of the four streams, deepest tap first
    (it is enlarged most). ``shared_trunk``: depth and points share all but the last convolutions. ``chunk``: frames
    that go through the spatial part together; activations of one chunk are kept at a time under recompute."""

    taps: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]
    features: int = 256
    hidden: int = 128
    last: int = 32
    shared_trunk: bool = True
    chunk: int = Field(4, gt=0)


class CameraHeadConfig(Section):
    """Iterative camera head. ``hidden`` is the width of the last MLP."""

    width: int
    heads: int
    layers: int
    mlp_ratio: int
    hidden: int
    iterations: int = Field(4, gt=0)


class FantasyWorldConfig(Section):
    """A FantasyWorld network. Blocks before ``split`` are the PCB, the others the video branch of the IRG layers.

    ``base`` is the local folder of the transformer in diffusers layout; None with ``allow_random_init`` gives weights
    drawn by tensor name, for tests and benchmarks. ``frames_per_step`` frames of each clip get depth and points.
    """

    clip: ClipConfig
    backbone: BackboneConfig
    split: int
    geometry: Literal["wan", "aggregator"] = "wan"
    compatibility: Literal["default", "published"] = "default"
    """published: the ``aggregator`` computes what the published code does, for weights that were trained with it; what
    ``default`` does otherwise, and why, is in docs/fantasy_world.md."""
    bridge: BridgeConfig = BridgeConfig()
    aggregator: AggregatorConfig = AggregatorConfig()
    camera_control: CameraControlConfig = CameraControlConfig()
    interaction: InteractionConfig
    dpt: DPTConfig
    camera_head: CameraHeadConfig
    pose_hidden: int = 512
    vggt: PathText | None = None
    """VGGT-1B's file, whose aggregator and heads a stage without predecessor starts from; for ``published``."""
    base: PathText | None = None
    allow_random_init: bool = False
    frames_per_step: int = Field(gt=0)
    camera_dropout: float = Field(0.17, ge=0, le=1)
    text_dropout: float = Field(0.1, ge=0, le=1)
    losses: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _check(self) -> FantasyWorldConfig:
        if not 0 < self.split < self.backbone.layers:
            raise ValueError(
                f"split is {self.split}, expected 1 to {self.backbone.layers - 1} for a backbone of "
                f"{self.backbone.layers} blocks"
            )
        taps = self.dpt.taps
        if list(taps) != sorted(set(taps)) or taps[0] < 1 or taps[-1] != self.irg_layers:
            raise ValueError(
                f"dpt.taps is {taps}, expected four ascending 1-based layers that end at the last of the "
                f"{self.irg_layers} IRG layers"
            )
        if self.published and self.geometry != "aggregator":
            raise ValueError(
                f"compatibility is published for geometry {self.geometry}, expected geometry aggregator, the design "
                "that was published (size wan2.1-14b)"
            )
        if self.vggt is not None and not self.published:
            raise ValueError(
                "vggt is set for compatibility default, expected published: the weights were trained with its blocks"
            )
        if self.geometry == "aggregator" and self.camera_control.layers > self.backbone.layers:
            raise ValueError(
                f"camera_control.layers is {self.camera_control.layers}, expected at most the "
                f"{self.backbone.layers} blocks of the backbone"
            )
        if self.frames_per_step > self.clip.frames:
            raise ValueError(
                f"frames_per_step is {self.frames_per_step}, expected at most the {self.clip.frames} frames of a clip"
            )
        return self

    @property
    def irg_layers(self) -> int:
        return self.backbone.layers - self.split

    @property
    def geometry_dim(self) -> int:
        """Width of the geometry stream."""
        return self.backbone.dim if self.geometry == "wan" else self.aggregator.dim

    @property
    def tap_dim(self) -> int:
        """Width of what the heads read: an aggregator layer hands out its frame and global states side by side."""
        return self.geometry_dim if self.geometry == "wan" else 2 * self.geometry_dim

    @property
    def published(self) -> bool:
        return self.compatibility == "published"

    @property
    def image_to_video(self) -> bool:
        return self.backbone.image_dim is not None


SIZES: dict[str, FantasyWorldConfig] = {
    "tiny": FantasyWorldConfig(
        clip=ClipConfig(frames=9, height=64, width=96),
        backbone=BackboneConfig(layers=6, heads=4, head_dim=32, ffn_dim=256, text_dim=64, text_length=64),
        split=2,
        bridge=BridgeConfig(width=64, heads=2, layers=2, ffn_dim=128),
        interaction=InteractionConfig(heads=3, head_dim=32),
        dpt=DPTConfig(taps=(1, 2, 3, 4), channels=(32, 32, 48, 48), features=24, hidden=16, last=16, chunk=12),
        camera_head=CameraHeadConfig(width=64, heads=2, layers=2, mlp_ratio=2, hidden=32),
        pose_hidden=64,
        allow_random_init=True,
        frames_per_step=3,
    ),
    "wan2.1-1.3b": FantasyWorldConfig(
        clip=ClipConfig(frames=81, height=336, width=592),
        backbone=BackboneConfig(layers=30, heads=12, head_dim=128, ffn_dim=8960),
        split=12,
        interaction=InteractionConfig(heads=19, head_dim=64),
        dpt=DPTConfig(taps=(6, 9, 12, 18), channels=(256, 256, 352, 352)),
        camera_head=CameraHeadConfig(width=512, heads=8, layers=2, mlp_ratio=2, hidden=256),
        frames_per_step=16,
    ),
    "wan2.1-1.3b-i2v": FantasyWorldConfig(
        clip=ClipConfig(frames=81, height=336, width=592),
        backbone=BackboneConfig(layers=30, heads=12, head_dim=128, ffn_dim=8960, in_channels=36, image_dim=1280),
        split=12,
        interaction=InteractionConfig(heads=19, head_dim=64),
        dpt=DPTConfig(taps=(6, 9, 12, 18), channels=(256, 256, 352, 352)),
        camera_head=CameraHeadConfig(width=512, heads=8, layers=2, mlp_ratio=2, hidden=256),
        frames_per_step=16,
    ),
    "wan2.1-14b": FantasyWorldConfig(
        clip=ClipConfig(frames=81, height=336, width=592),
        backbone=BackboneConfig(layers=40, heads=40, head_dim=128, ffn_dim=13824, in_channels=36, image_dim=1280),
        split=16,
        geometry="aggregator",
        interaction=InteractionConfig(heads=12, head_dim=96),
        dpt=DPTConfig(taps=(8, 12, 18, 24), channels=(256, 512, 1024, 1024), shared_trunk=False),
        camera_head=CameraHeadConfig(width=2048, heads=16, layers=4, mlp_ratio=4, hidden=1024),
        frames_per_step=16,
    ),
}
