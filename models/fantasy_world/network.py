"""The two designs of the geometry branch, and building a network."""

from __future__ import annotations

import copy

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from models.fantasy_world.backbone import kept_dtype, meta_base
from models.fantasy_world.config import FantasyWorldConfig
from models.fantasy_world.geometry import LatentBridge, WanGeometryBlock, ZeroLinear
from models.fantasy_world.plucker import PoseEncoder, token_plucker
from models.fantasy_world.streams import FantasyWorld
from models.fantasy_world.tokens import SpecialTokens


def build_network(config: FantasyWorldConfig, stage: int, device: torch.device | str = "cpu",
                  dtype: torch.dtype = torch.float32) -> FantasyWorld:
    """The network of ``stage`` (1 or 2): own modules on ``device`` in fp32, at first values that do not depend on the
    stage; the frozen base, and the geometry blocks that start as copies of it, on the meta device until ``load_base``.

    ``dtype`` is that of the frozen base and of the activations; an engine in bf16 casts the trainable part to it.
    """
    base = meta_base(config.backbone)
    for name, parameter in base.named_parameters():
        parameter.data = parameter.data.to(kept_dtype(name, dtype))
    return WanFantasyWorld(config, stage, base.requires_grad_(False), device, dtype)


class WanFantasyWorld(FantasyWorld):
    """Geometry on the backbone's own width, its blocks copies of the backbone's (the seed's design)."""

    def __init__(self, config: FantasyWorldConfig, stage: int, base: WanTransformer3DModel,
                 device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__(config, stage, base, device, dtype)
        dim = config.backbone.dim
        self.pose_encoder = self.own("pose_encoder", lambda: PoseEncoder(config.pose_hidden, dim))
        if stage > 1:
            self.camera_adapters = self.own("camera_adapters", lambda: nn.ModuleList(
                ZeroLinear(dim, dim) for _ in range(config.split)))

    def head_dims(self) -> tuple[int, ...]:
        config = self.config
        return config.backbone.head_dim, config.interaction.head_dim, self._bridge_head_dim

    @property
    def _bridge_head_dim(self) -> int:
        return self.config.bridge.width // self.config.bridge.heads

    def make_bridge(self) -> nn.Module:
        return LatentBridge(self.config.bridge, self.config.backbone.dim)

    def make_tokens(self) -> nn.Module:
        return SpecialTokens(self.config.geometry_dim)

    def make_geo_block(self, block: nn.Module) -> nn.Module:
        own = copy.deepcopy(block).float().requires_grad_(True)  # on the meta device until its values are loaded
        return WanGeometryBlock(own, self.config.geometry_dim)

    def encode_camera(self, extrinsics: Tensor, intrinsics: Tensor, given: Tensor, grid: tuple[int, int, int],
                      height: int, width: int) -> tuple[Tensor]:
        rays = token_plucker(extrinsics, intrinsics, grid, height, width)
        return (self.pose_encoder(rays.to(self.dtype), given),)

    def run_pcb_block(self, i: int, block: nn.Module, x: Tensor, video: tuple, camera: tuple) -> Tensor:
        if self.stage > 1:
            x = x + self.camera_adapters[i](camera[0])
        return block(x, *video)

    def start_geometry(self, x_v: Tensor, latent: Tensor, camera: tuple) -> Tensor:
        x = self.latent_bridge(x_v, *self.rope.video(self._bridge_head_dim, latent))
        return self.special_tokens(x.unflatten(1, (latent.shape[2], -1)))

    def geometry_inputs(self, latent: Tensor, timestep: Tensor, context: Tensor, projection: Tensor,
                        camera: tuple) -> tuple:
        rotation = self.rope.geometry(self.config.backbone.head_dim, latent)
        return context, projection, rotation, camera[0]

    def geo_leaves(self, block: nn.Module) -> list[nn.Module]:
        return [block.attention, block.feed_forward]
