"""FantasyWorld: a frozen video transformer and a geometry branch next to it (arXiv 2509.21657).

The frozen blocks before the split (PCB) denoise far enough that their latent can be read as a scene. From there on two
streams run side by side in the IRG layers: the video's, frozen, and the geometry's, whose taps give depth, points and
cameras. Stage 1 trains the geometry branch on the PCB's latent and builds no video block behind the split. Stage 2
adds the video stream, the exchange between both, and the camera adapters of the video.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from stagecoach.models.common.materialise import keyed_init
from stagecoach.models.common.network import StageNetwork
from stagecoach.models.family import Batch, Progress
from stagecoach.models.fantasy_world.backbone import OutputHead, SplitWanBlock, Stem
from stagecoach.models.fantasy_world.config import PATCH, VAE_SPACE, FantasyWorldConfig
from stagecoach.models.fantasy_world.geometry.irg import BiCrossAttention, IRGLayer
from stagecoach.models.fantasy_world.geometry.tokens import camera_tokens
from stagecoach.models.fantasy_world.heads.camera_head import CameraHead
from stagecoach.models.fantasy_world.heads.dpt import DenseHeads
from stagecoach.models.fantasy_world.rope import RotaryTables
from stagecoach.models.fantasy_world.step import Result, training_step


class FantasyWorld(StageNetwork, ABC):
    """What both geometry branches share. ``base`` lends its (meta) parts; own modules are made on ``device``."""

    def __init__(
        self,
        config: FantasyWorldConfig,
        stage: int,
        base: WanTransformer3DModel,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(config, stage, device, dtype)
        self.stem = Stem(base)
        self.pcb = nn.ModuleList(self.pcb_block(block) for block in base.blocks[: config.split])
        with keyed_init("rope", device):
            self.rope = RotaryTables((config.backbone.head_dim, config.interaction.head_dim, self.own_head_dim))
        self.latent_bridge = self.own("latent_bridge", self.make_bridge)
        self.special_tokens = self.own("special_tokens", self.make_tokens)
        self.irg = nn.ModuleList(self._irg_layer(i, block) for i, block in enumerate(base.blocks[config.split :]))
        self.dpt = self.own("dpt", lambda: DenseHeads(config.dpt, config.tap_dim, config.published))
        self.camera_head = self.own(
            "camera_head", lambda: CameraHead(config.camera_head, config.tap_dim, config.published)
        )
        if stage > 1:
            self.out = OutputHead(base)
        self.make_camera()

    def _irg_layer(self, i: int, block: nn.Module) -> IRGLayer:
        config = self.config
        geo_block = self.own(f"irg.{i}.geo_block", lambda: self.make_geo_block(block))
        tapped = i + 1 in config.dpt.taps
        if self.stage == 1:
            return IRGLayer(geo_block, tapped)
        cross = self.own(
            f"irg.{i}.cross_attention",
            lambda: BiCrossAttention(config.interaction, config.backbone.dim, config.geometry_dim),
        )
        return IRGLayer(geo_block, tapped, self.video_block(block), cross)

    @property
    @abstractmethod
    def own_head_dim(self) -> int:
        """Head size of the design's own layers, which need a rotation too."""

    @abstractmethod
    def make_camera(self) -> None:
        """Make what reads the cameras, ``pose_encoder`` and ``camera_adapters``, and other modules of a design."""

    @abstractmethod
    def make_bridge(self) -> nn.Module:
        """Make what leads the video's tokens into the geometry stream."""

    @abstractmethod
    def make_tokens(self) -> nn.Module:
        """Make the camera and register tokens."""

    @abstractmethod
    def make_geo_block(self, block: nn.Module) -> nn.Module:
        """The geometry block next to the backbone's ``block``."""

    def pcb_block(self, block: nn.Module) -> nn.Module:
        """What runs as a block before the split."""
        return block

    def video_block(self, block: nn.Module) -> SplitWanBlock:
        """What runs as the video's block of an IRG layer."""
        return SplitWanBlock(block)

    def forward(self, batch: Batch, progress: Progress) -> Result:
        """``{"losses": {name: fp32 [B]}, "metrics": {name: (sum, count)}}``."""
        return training_step(self, batch, progress)

    def predict(
        self,
        latents_noisy: Tensor,
        timestep: Tensor,
        text: Tensor,
        extrinsics: Tensor,
        intrinsics: Tensor,
        camera_given: Tensor,
        frames: Tensor,
        image_latent: Tensor | None = None,
        image_states: Tensor | None = None,
    ) -> dict[str, Tensor | list[Tensor]]:
        """One forward.

        latents_noisy ``[B, 16, f, h, w]``; timestep fp32 ``[B]`` in 0..1000; text ``[B, L, text_dim]``, zeros where
        there is none; extrinsics fp32 ``[B, F, 3, 4]`` (w2c, relative to frame 0), intrinsics fp32 ``[B, F, 4]`` in
        pixels; camera_given bool ``[B]``, False withholds the camera; frames int64 ``[B, K]``, which to decode;
        image-to-video: image_latent ``[B, 20, f, h, w]``, image_states ``[B, 257, image_dim]``.

        Returns ``video`` ``[B, 16, f, h, w]``, the velocity (stage 2); fp32 ``depth``, ``depth_confidence``,
        ``points_confidence`` ``[B, K, H, W]``, ``points`` ``[B, K, H, W, 3]``; ``poses``, per refinement iteration
        fp32 ``[B, F, 9]``.
        """
        grid = self._grid(latents_noisy)
        height, width = (VAE_SPACE * size for size in latents_noisy.shape[3:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage > 1):
            latent = latents_noisy if image_latent is None else torch.cat([latents_noisy, image_latent], 1)
            latent = latent.to(self.dtype)
            image_states = None if image_states is None else image_states.to(self.dtype)
            x_v, time, projection, context = self.stem(latent, timestep.float(), self._pad(text), image_states)
        camera = self.encode_camera(extrinsics, intrinsics, camera_given, grid, height, width)
        head_dim, cross_dim = self.config.backbone.head_dim, self.config.interaction.head_dim
        video = (context, projection, self.rope.video(head_dim, latent))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage > 1):
            for i, block in enumerate(self.pcb):
                x_v = self.run_pcb_block(i, block, x_v, video, camera)

        x_g = self.start_geometry(x_v, latent, camera)
        geometry = self.geometry_inputs(latent, timestep, context, projection, camera)
        cross = (*self.rope.video(cross_dim, latent), *self.rope.geometry(cross_dim, latent)) if self.stage > 1 else ()
        if self.stage == 1:
            x_v = None
        taps = []
        for i, layer in enumerate(self.irg):
            x_v, x_g, features = layer(x_v, x_g, geometry, self.video_inputs(i, video, camera), cross)
            if features is not None:
                taps.append(features)
        result = self.dpt(taps, frames, grid, height, width)
        result["poses"] = self.camera_head(camera_tokens(taps[-1], grid[0]))
        if self.stage > 1:
            result["video"] = self.out(x_v, time, grid)
        return result

    @abstractmethod
    def encode_camera(
        self, extrinsics: Tensor, intrinsics: Tensor, given: Tensor, grid: tuple[int, int, int], height: int, width: int
    ) -> tuple[Tensor | None, ...]:
        """What the video and the geometry stream are given of the cameras."""

    @abstractmethod
    def run_pcb_block(self, i: int, block: nn.Module, x: Tensor, video: tuple, camera: tuple) -> Tensor:
        """Tokens ``[B, T, d]`` through block ``i`` with what ``encode_camera`` gave."""

    @abstractmethod
    def start_geometry(self, x_v: Tensor, latent: Tensor, camera: tuple) -> Tensor:
        """The geometry stream before the first IRG layer."""

    @abstractmethod
    def geometry_inputs(
        self, latent: Tensor, timestep: Tensor, context: Tensor, projection: Tensor, camera: tuple
    ) -> tuple:
        """What ``geo_block.open`` takes besides the stream."""

    def video_inputs(self, i: int, video: tuple, camera: tuple) -> tuple:
        """What ``video_block.open`` of IRG layer ``i`` takes besides the stream."""
        return video

    def recompute_units(self) -> list[nn.Module]:
        """Modules whose activations need not be kept."""
        heads = [unit for head in self.dpt.heads.values() for unit in (*head.temporal, head.fusion)]
        return [*(self.pcb if self.stage > 1 else ()), *self.irg, *heads]

    @abstractmethod
    def geo_leaves(self, block: nn.Module) -> list[nn.Module]:
        """Parts of a geometry block that are called once each."""

    def leaf_modules(self) -> list[nn.Module]:
        """Trainable modules that ZeRO-3 may gather as a whole."""
        leaves = []
        for layer in self.irg:
            leaves += self.geo_leaves(layer.geo_block)
            if layer.cross_attention is not None:
                leaves.append(layer.cross_attention)
        return leaves

    def _grid(self, latent: Tensor) -> tuple[int, int, int]:
        f, h, w = latent.shape[2:]
        if h % PATCH or w % PATCH:
            raise ValueError(
                f"a latent of {h} x {w} was given, expected even sizes; frames must be multiples of "
                f"{PATCH * VAE_SPACE} pixels high and wide"
            )
        return f, h // PATCH, w // PATCH

    def _pad(self, text: Tensor) -> Tensor:
        """Zeros up to the length that the backbone was trained with."""
        length = self.config.backbone.text_length
        if text.shape[1] > length:
            raise ValueError(
                f"text of {text.shape[1]} tokens was given, expected at most {length}; encode it again with that limit"
            )
        return F.pad(text.to(self.dtype), (0, 0, 0, length - text.shape[1]))
