"""The two designs of the geometry branch, and building a network."""

import copy

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from stagecoach.data.fantasy_world.cameras import encode_pose
from stagecoach.models.common.materialise import meta_model
from stagecoach.models.fantasy_world.backbone import SplitWanBlock
from stagecoach.models.fantasy_world.camera import (
    CameraAdapter,
    CameraEncoder,
    ControlledWanBlock,
    PoseEncoder,
    fold_plucker,
    published_lens,
    token_plucker,
)
from stagecoach.models.fantasy_world.config import FantasyWorldConfig
from stagecoach.models.fantasy_world.geometry.aggregator import (
    AggregatorPair,
    PosedTokens,
    PublishedTimeProjection,
    TimeProjection,
    group_poses,
)
from stagecoach.models.fantasy_world.geometry.branch import LatentBridge, WanGeometryBlock, ZeroLinear
from stagecoach.models.fantasy_world.geometry.tokens import PUBLISHED_STD, SpecialTokens
from stagecoach.models.fantasy_world.rope import plane_rotation
from stagecoach.models.fantasy_world.streams import FantasyWorld


def build_network(
    config: FantasyWorldConfig, stage: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> FantasyWorld:
    """The network of ``stage`` (1 or 2): own modules on ``device`` in fp32, at initial values that do not depend on the
    stage; the frozen base, and the geometry blocks that start as copies of it, on the meta device until ``load_base``.

    ``dtype`` is that of the frozen base and of the activations; an engine in bf16 casts the trainable part to it.
    """
    base = meta_model(WanTransformer3DModel, config.backbone.diffusers(), dtype)
    design = {"wan": WanFantasyWorld, "aggregator": AggregatorFantasyWorld}[config.geometry]
    return design(config, stage, base, device, dtype)


class WanFantasyWorld(FantasyWorld):
    """Geometry on the backbone's own width, its blocks copies of the backbone's (the guide's design)."""

    def make_camera(self) -> None:
        config, dim = self.config, self.config.backbone.dim
        self.pose_encoder = self.own("pose_encoder", lambda: PoseEncoder(config.pose_hidden, dim))
        if self.stage > 1:
            self.camera_adapters = self.own(
                "camera_adapters", lambda: nn.ModuleList(ZeroLinear(dim, dim) for _ in range(config.split))
            )

    @property
    def own_head_dim(self) -> int:
        return self.config.bridge.width // self.config.bridge.heads

    def make_bridge(self) -> nn.Module:
        return LatentBridge(self.config.bridge, self.config.backbone.dim)

    def make_tokens(self) -> nn.Module:
        return SpecialTokens(self.config.geometry_dim, timed=True)

    def make_geo_block(self, block: nn.Module) -> nn.Module:
        own = copy.deepcopy(block).float().requires_grad_(True)  # on the meta device until its values are loaded
        return WanGeometryBlock(own, self.config.geometry_dim)

    def encode_camera(
        self, extrinsics: Tensor, intrinsics: Tensor, given: Tensor, grid: tuple[int, int, int], height: int, width: int
    ) -> tuple[Tensor]:
        rays = token_plucker(extrinsics, intrinsics, grid, height, width)
        return (self.pose_encoder(rays.to(self.dtype), given),)

    def run_pcb_block(self, i: int, block: nn.Module, x: Tensor, video: tuple, camera: tuple) -> Tensor:
        if self.stage > 1:
            x = x + self.camera_adapters[i](camera[0])
        return block(x, *video)

    def start_geometry(self, x_v: Tensor, latent: Tensor, camera: tuple) -> Tensor:
        x = self.latent_bridge(x_v, *self.rope.video(self.own_head_dim, latent))
        return self.special_tokens(x.unflatten(1, (latent.shape[2], -1)))

    def geometry_inputs(
        self, latent: Tensor, timestep: Tensor, context: Tensor, projection: Tensor, camera: tuple
    ) -> tuple:
        rotation = self.rope.geometry(self.config.backbone.head_dim, latent)
        return context, projection, rotation, camera[0]

    def geo_leaves(self, block: nn.Module) -> list[nn.Module]:
        return [block.attention, block.feed_forward]


class AggregatorFantasyWorld(FantasyWorld):
    """Geometry in a VGGT aggregator of its own width, cameras inside the video's cross-attention (the paper's)."""

    def make_camera(self) -> None:
        backbone, control, width = self.config.backbone, self.config.camera_control, self.config.geometry_dim
        published = self.config.published
        projection = PublishedTimeProjection if published else TimeProjection
        self.geometry_time = self.own("geometry_time", lambda: projection(backbone.freq_dim, width))
        if self.stage > 1:
            self.pose_encoder = self.own("pose_encoder", lambda: CameraEncoder(control, backbone.dim))
            self.camera_adapters = self.own(
                "camera_adapters",
                lambda: nn.ModuleList(CameraAdapter(control, backbone.dim, published) for _ in range(control.layers)),
            )

    @property
    def own_head_dim(self) -> int:
        return self.config.aggregator.dim // self.config.aggregator.heads

    def make_bridge(self) -> nn.Module:
        return nn.Linear(self.config.backbone.dim, self.config.geometry_dim)  # the published 1 x 1 x 1 convolution

    def make_tokens(self) -> nn.Module:
        aggregator = self.config.aggregator
        return SpecialTokens(aggregator.dim, std=PUBLISHED_STD) if self.config.published else PosedTokens(aggregator)

    def make_geo_block(self, block: nn.Module) -> nn.Module:
        return AggregatorPair(self.config.aggregator, self.config.published)

    def pcb_block(self, block: nn.Module) -> nn.Module:
        return ControlledWanBlock(block)

    def video_block(self, block: nn.Module) -> SplitWanBlock:
        return ControlledWanBlock(block)

    def encode_camera(
        self, extrinsics: Tensor, intrinsics: Tensor, given: Tensor, grid: tuple[int, int, int], height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        poses = group_poses(encode_pose(extrinsics, intrinsics, height, width))
        features = None
        if self.stage > 1:
            lens = published_lens(intrinsics, height, width) if self.config.published else intrinsics
            features = self.pose_encoder(fold_plucker(extrinsics, lens, height, width, self.dtype), given)
        return poses.to(self.dtype), given, features

    def run_pcb_block(self, i: int, block: nn.Module, x: Tensor, video: tuple, camera: tuple) -> Tensor:
        return block(x, *video, *self._control(i, camera))

    def start_geometry(self, x_v: Tensor, latent: Tensor, camera: tuple) -> Tensor:
        poses, given, _ = camera
        patches = self.latent_bridge(x_v).unflatten(1, (latent.shape[2], -1))
        # The published sampling shows the cameras to the video alone.
        return self.special_tokens(patches) if self.config.published else self.special_tokens(patches, poses, given)

    def geometry_inputs(
        self, latent: Tensor, timestep: Tensor, context: Tensor, projection: Tensor, camera: tuple
    ) -> tuple:
        rotation = plane_rotation if self.config.published else self.rope.geometry
        in_frame, in_clip = (rotation(self.own_head_dim, part) for part in (latent[:, :, :1], latent))
        return self.geometry_time(timestep), in_frame, in_clip

    def video_inputs(self, i: int, video: tuple, camera: tuple) -> tuple:
        return *video, *self._control(self.config.split + i, camera)

    def _control(self, i: int, camera: tuple) -> tuple:
        """The cameras' features and the adapter of block ``i`` of the backbone, where it has one."""
        return (camera[2], self.camera_adapters[i]) if self.stage > 1 and i < len(self.camera_adapters) else ()

    def recompute_units(self) -> list[nn.Module]:
        return [*super().recompute_units(), *([self.pose_encoder] if self.stage > 1 else [])]

    def geo_leaves(self, block: nn.Module) -> list[nn.Module]:
        return [block.frame_block, block.global_block.attention, block.global_block.feed_forward]
