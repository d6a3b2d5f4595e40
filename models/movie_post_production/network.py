"""A frozen FLUX transformer with references hung into it, and building one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from stagecoach.models.common.layers import OwnLinear
from stagecoach.models.common.lora import adapted, inject_lora, plain
from stagecoach.models.common.materialise import meta_model
from stagecoach.models.common.network import StageNetwork
from stagecoach.models.family import Batch, Progress
from stagecoach.models.movie_post_production.blocks import DoubleBlock, References, Rotary, SingleBlock
from stagecoach.models.movie_post_production.config import PATCH, MoviePostConfig
from stagecoach.models.movie_post_production.layout.assemble_attention import AssembleAttend, packs
from stagecoach.models.movie_post_production.layout.instance_tokens import (
    AlphaPredictor,
    InstanceEncoder,
    LayoutHead,
    NullReferences,
    TextContent,
    layout_weight,
)
from stagecoach.models.movie_post_production.layout.instances import Instances, check_width
from stagecoach.models.movie_post_production.layout.regions import (
    box_centres,
    make_segments,
    owners,
    shares,
    token_cover,
)
from stagecoach.models.movie_post_production.modulation import BlockModulation, FeedbackBridge, ModulationHead
from stagecoach.models.movie_post_production.stages import target_layers
from stagecoach.models.movie_post_production.step import training_step


def build_network(
    config: MoviePostConfig, stage: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> MoviePostNetwork:
    """The network of ``stage`` (1 to 3): own modules on ``device`` in fp32, at initial values that do not depend on the
    stage; the frozen base on the meta device until ``load_base``. ``dtype`` is that of the base and of activations."""
    base = meta_model(FluxTransformer2DModel, config.backbone.diffusers(), dtype)
    inject_lora(base, target_layers(config), config.lora.rank, config.lora.alpha, device)
    return MoviePostNetwork(config, stage, base, device, dtype)


class MoviePostNetwork(StageNetwork):
    """Parts of FLUX under diffusers' names, and our own. Stage 2 adds the modulation, stage 3 the feedback."""

    def __init__(
        self,
        config: MoviePostConfig,
        stage: int,
        base: FluxTransformer2DModel,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(config, stage, device, dtype)
        own, dim = config.instance, config.backbone.dim
        self.pos_embed, self.time_text_embed = base.pos_embed, base.time_text_embed
        self.context_embedder, self.x_embedder = base.context_embedder, base.x_embedder
        self.null_references = self.own("null_references", lambda: NullReferences(own))
        self.alpha_predictor = self.own("alpha_predictor", lambda: AlphaPredictor(own))
        self.instance_encoder = self.own("instance_encoder", lambda: InstanceEncoder(own, dim))
        self.instance_text = (
            self.own("instance_text", lambda: TextContent(config.backbone.pooled_dim, dim)) if own.text else None
        )
        self.layout_head = self.own("layout_head", lambda: LayoutHead(dim))
        self.modulation_head = self.own("modulation_head", lambda: ModulationHead(dim)) if stage > 1 else None
        path = adapted if config.lora.scope == "global" else plain
        self.transformer_blocks = nn.ModuleList(
            DoubleBlock(block, self._own_parts("transformer_blocks", i), path, config.layout.second_ff)
            for i, block in enumerate(base.transformer_blocks)
        )
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(block, self._own_parts("single_transformer_blocks", i), path)
            for i, block in enumerate(base.single_transformer_blocks)
        )
        self.norm_out, self.proj_out = base.norm_out, base.proj_out

    def _own_parts(self, kind: str, i: int) -> dict[str, nn.Module]:
        """What hangs in block ``i`` of a kind. The last double block has no next one to feed."""
        config, dim = self.config, self.config.backbone.dim
        double = kind == "transformer_blocks"
        make: dict[str, Callable[[], nn.Module]] = {}
        if i in (config.layout.double_blocks if double else config.layout.single_blocks):
            make["layout_out"] = lambda: OwnLinear(dim, dim, "zero")
        if double and self.stage > 1:
            make["modulation"] = lambda: BlockModulation(config.modulation, dim)
        if double and self.stage > 2 and i < config.backbone.double_blocks - 1:
            make["feedback"] = lambda: FeedbackBridge(config.feedback, dim)
        return {part: self.own(f"{kind}.{i}.{part}", factory) for part, factory in make.items()}

    def forward(self, batch: Batch, progress: Progress) -> dict[str, dict]:
        """``{"losses": {name: fp32 [B]}, "metrics": {name: (sum, count)}}``."""
        return training_step(self, batch, progress)

    def predict(
        self,
        latent: Tensor,
        t: Tensor,
        guidance: Tensor,
        t5: Tensor,
        pooled: Tensor,
        instances: Instances,
        layout_scale: float = 1.0,
    ) -> dict[str, Tensor]:
        """One forward.

        ``latent`` ``[B, C, h, w]``, the noisy latent, h and w even; ``t`` fp32 ``[B]`` in [0, 1] and ``guidance`` fp32
        ``[B]``, raw (3.5): both are rounded to the network's dtype before they are embedded, as diffusers does, so a
        bf16 network cannot tell times closer than 1/256. ``t5`` ``[B, L, text_dim]``, all tokens, padding included;
        ``pooled`` ``[B, pooled_dim]``; ``instances`` as ``instances.py`` says. ``layout_scale`` is on the layout
        residual. ``boxes``, ``valid`` and ``layout_given`` may be on the CPU no matter which device the rest is on.

        Returns ``velocity`` fp32 ``[B, C, h, w]``; ``alpha`` fp32 ``[B, N]``; ``active`` bool ``[B, N]``: references
        that are real and not withheld; from stage 2 on ``feedback`` fp32 ``[B, N]``: mean |F| over channels and over
        the blocks that feed another (stage 3, else zeros), detached.
        """
        rows, columns = latent.shape[2:]
        if rows % PATCH or columns % PATCH:
            raise ValueError(
                f"a latent of {rows} x {columns} was given, expected even sizes; pictures must be "
                "multiples of 16 pixels high and wide"
            )
        h, w = rows // PATCH, columns // PATCH
        image = self.x_embedder(pack(latent.to(self.dtype)))
        text = self.context_embedder(t5.to(self.dtype))
        temb = self._embed_time(t, guidance, pooled.to(self.dtype))
        rotary = self.pos_embed(torch.cat([torch.zeros(text.shape[1], 3), grid_ids(h, w)]).to(latent.device))
        refs, layout = self.gather(instances, h, w, rotary, layout_scale)

        feedback = magnitude = None
        for block in self.transformer_blocks:
            image, text, layout, feedback = block(image, text, layout, temb, feedback, rotary, refs)
            if block.feedback is not None:
                size = feedback.detach().float().abs().mean(-1)
                magnitude = size if magnitude is None else magnitude + size
        for block in self.single_transformer_blocks:
            image, text, layout = block(image, text, layout, temb, rotary, refs)
        velocity = unpack(self.proj_out(self.norm_out(image, temb)), h, w).float()
        bridges = self.config.backbone.double_blocks - 1
        alpha = refs["alpha"]
        return {
            "velocity": velocity,
            "alpha": alpha,
            "active": refs["active"],
            "feedback": torch.zeros_like(alpha) if magnitude is None else magnitude / bridges,
        }

    def gather(
        self, instances: Instances, h: int, w: int, rotary: Rotary, layout_scale: float
    ) -> tuple[References, Tensor]:
        """What the blocks read of the references, and their layout tokens ``[B, N, d]``. ``rotary``: of text and image.

        - ``alpha`` fp32 ``[B, N]``, ``active`` bool ``[B, N]``, ``present`` fp32 ``[B, 1, 1]``: 1 with any;
        - ``cover`` bool ``[B, N, T]``; ``average`` fp32 ``[B, N, T]``: the plain mean over those that own a token;
          ``among`` fp32 ``[B, N]``: that over the references of the picture;
        - ``share``, ``strength``: as ``regions.shares`` of the layout weights; ``segments``; ``layout_rotary`` and
          ``image_rotary``, of the layout tokens and of the image's;
        - ``shared`` ``[B, N, d]``: the offset that all blocks share (stage 2 and 3).
        """
        where, device = instances["boxes"].device, rotary[0].device
        active = instances["valid"] & instances["layout_given"].to(where).unsqueeze(-1)
        cover = token_cover(instances["boxes"], active, h, w)
        backend = next(m.backend for m in self.modules() if isinstance(m, AssembleAttend))
        segments = make_segments(cover, packs(backend, device, self.dtype), device)
        centres = box_centres(instances["boxes"], h, w).flatten(0, 1)
        boxes, depth, active, cover, centres = (
            x.to(device) for x in (instances["boxes"].float(), instances["depth"], active, cover, centres)
        )

        alpha, token = self.encode(instances, boxes, depth)
        owned = owners(cover, depth, self.config.layout.overlap)
        share, strength = shares(layout_weight(alpha, self.config.layout.layout_min), owned)
        average, _ = shares(torch.ones_like(alpha), owned)
        refs: References = {
            "alpha": alpha,
            "active": active,
            "cover": cover,
            "average": average,
            "share": share,
            "strength": strength * layout_scale,
            "segments": segments,
            "layout_rotary": self.pos_embed(centres),
            "image_rotary": tuple(table[-h * w :] for table in rotary),
            "present": active.any(1).float()[:, None, None] * float(layout_scale > 0),
            "among": active / active.sum(1, keepdim=True).clamp_min(1),
            "shared": None if self.modulation_head is None else self.modulation_head(token),
        }
        return refs, self.layout_head(token)

    def encode(self, instances: Instances, boxes: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha fp32 ``[B, N]`` and instance token ``[B, N, d]`` of each reference."""
        own = self.config.instance
        check_width("clip", instances["clip"], own.clip_dim)
        check_width("dino", instances["dino"], own.dino_dim)
        clip, dino = self.null_references(
            instances["clip"].to(self.dtype),
            instances["dino"].to(self.dtype),
            instances["clip_given"],
            instances["dino_given"],
        )
        alpha = self.alpha_predictor(clip, boxes, depth)
        token = self.instance_encoder(boxes, clip, dino, alpha)
        if self.instance_text is not None:
            token = token + self.instance_text(instances["text"].to(self.dtype), instances["text_given"])
        return alpha, token

    def recompute_units(self) -> list[nn.Module]:
        """Modules whose activations need not be kept."""
        return [*self.transformer_blocks, *self.single_transformer_blocks]

    def _embed_time(self, t: Tensor, guidance: Tensor, pooled: Tensor) -> Tensor:
        t, guidance = t.to(self.dtype) * 1000, guidance.to(self.dtype) * 1000
        if self.config.backbone.guidance_embeds:
            return self.time_text_embed(t, guidance, pooled)
        return self.time_text_embed(t, pooled)


def grid_ids(h: int, w: int) -> Tensor:
    """fp32 ``[h w, 3]``: position ids (0, row, column) of image tokens. Those of text are zeros."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()


def pack(latent: Tensor) -> Tensor:
    """``[B, C, 2 h, 2 w]`` -> ``[B, h w, 4 C]``, channel by channel, 2 x 2 inside."""
    b, c, height, width = latent.shape
    x = latent.view(b, c, height // PATCH, PATCH, width // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b, (height // PATCH) * (width // PATCH), c * PATCH * PATCH)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """``[B, h w, 4 C]`` -> ``[B, C, 2 h, 2 w]``."""
    x = tokens.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, (h, w)).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(len(tokens), -1, PATCH * h, PATCH * w)
