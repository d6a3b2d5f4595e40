"""The ``wan`` geometry branch: latent bridge and geometry blocks, on the backbone's own width."""

from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn

from stagecoach.models.common.attention import Attend
from stagecoach.models.fantasy_world.backbone import SplitWanBlock
from stagecoach.models.fantasy_world.config import SPECIAL_TOKENS, BridgeConfig
from stagecoach.models.fantasy_world.geometry.tokens import beside_patches
from stagecoach.models.fantasy_world.rope import Rotation, rotate


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero: what it adds changes nothing until it has been trained."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class BridgeLayer(nn.Module):
    """Pre-LN transformer layer with RMSNorm on q and k over all heads, as in Wan."""

    def __init__(self, dim: int, heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.attend = Attend()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``[B, T, width]`` -> same; ``cos`` and ``sin`` fp32 ``[1, T, 1, width / heads]``."""
        normed = self.norm1(x)
        q, k, v = (
            part.unflatten(2, (self.heads, -1))
            for part in (self.norm_q(self.to_q(normed)), self.norm_k(self.to_k(normed)), self.to_v(normed))
        )
        x = x + self.to_out(self.attend(rotate(q, (cos, sin)), rotate(k, (cos, sin)), v))
        return x + self.ffn(self.norm2(x))


class LatentBridge(nn.Module):
    """Carries the PCB's latent over to the geometry stream: x + up(layers(down(x))).

    ``up`` starts at zero, so that at first the latent passes unchanged. The geometry blocks start as copies of the
    backbone's blocks after the split, and what they know how to read is just that latent; a bridge through 384
    channels that began at random would hand them noise and throw their start away.
    """

    def __init__(self, config: BridgeConfig, dim: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, config.width), ZeroLinear(config.width, dim)
        self.layers = nn.ModuleList(
            BridgeLayer(config.width, config.heads, config.ffn_dim) for _ in range(config.layers)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``[B, f h w, d]`` -> same; the rotation is for heads of width / heads."""
        inner = self.down(x)
        for layer in self.layers:
            inner = layer(inner, cos, sin)
        return x + self.up(inner)


class WanGeometryBlock(SplitWanBlock):
    """A Wan block that starts as a copy of the backbone's and reads the camera through a zero-initialised adapter.

    It takes the text context and the time projection that the video block takes; its rotation is the geometry
    stream's.
    """

    def __init__(self, block: WanTransformerBlock, dim: int) -> None:
        super().__init__(block)
        self.adapter = ZeroLinear(dim, dim)

    def open(
        self, x: Tensor, context: Tensor, projection: Tensor, rotation: Rotation, camera: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``x`` ``[B, f (5 + h w), d]``, ``camera`` ``[B, f h w, d]``."""
        frames = (x.shape[1] - camera.shape[1]) // SPECIAL_TOKENS
        return super().open(x + beside_patches(self.adapter(camera), frames), context, projection, rotation)

    def features(self, x: Tensor, carried: tuple[Tensor, ...]) -> Tensor:
        """What the heads read of this layer's output."""
        return x
