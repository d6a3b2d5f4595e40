"""The networks of DanceWithMusic, phase by phase, and building one."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stagecoach.models.common.network import StageNetwork
from stagecoach.models.dance_with_music.champ.reference import ReferenceNet
from stagecoach.models.dance_with_music.champ.unet import DenoisingUnet, image_base, motion_base
from stagecoach.models.dance_with_music.config import DanceConfig, Phase
from stagecoach.models.dance_with_music.guidance.types import GuidanceBank, guidance_type
from stagecoach.models.dance_with_music.identity.face_tokens import FaceTokens
from stagecoach.models.dance_with_music.music_to_pose.model import MusicToPose
from stagecoach.models.dance_with_music.stages import make_stages
from stagecoach.models.dance_with_music.step import training_step
from stagecoach.models.dance_with_music.svd.unet import SvdDenoiser, svd_base
from stagecoach.models.family import Batch, Progress


def build_network(
    config: DanceConfig, stage: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DanceNetwork:
    """The network of ``stage``, counted from 1: own modules on ``device`` in fp32, at initial values that do not depend
    on the stage; what starts from published weights on the meta device until ``load_base``, in fp32 and requiring grad
    where the stage trains it, in ``dtype``, that of activations, where not."""
    network = DanceNetwork(config, stage, device, dtype)
    mark_trained(network, (entry.pattern for entry in make_stages(config)[stage - 1].trainable))
    return network


class DanceNetwork(StageNetwork):
    """What a phase needs and nothing else: ``m2p`` alone in phase ``m2p``; then ``guidance``, ``face_tokens``,
    ``denoising_unet`` and, with backbone ``champ``, ``reference_unet`` besides; no ``m2p`` in phase ``guidance``."""

    def __init__(self, config: DanceConfig, stage: int, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__(config, stage, device, dtype)
        self.phase: Phase = config.phase(stage)
        width = config.unet.cross_dim
        if self.phase != "guidance":
            self.m2p = self.own("m2p", lambda: MusicToPose(config.m2p, width))
        if self.phase == "m2p":
            return
        self.guidance = self.own("guidance", lambda: GuidanceBank(config))
        self.face_tokens = self.own("face_tokens", lambda: FaceTokens(config.face, width))
        if config.backbone == "svd":
            self.denoising_unet: nn.Module = SvdDenoiser(config, svd_base(config.unet), dtype)
        else:
            base = image_base(config) if self.phase == "image" else motion_base(config)
            self.denoising_unet = DenoisingUnet(config, base, device, dtype)
            self.reference_unet = ReferenceNet(image_base(config), dtype)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, dict]:
        """``{"losses": {name: fp32 [B]}, "metrics": {name: (sum, count)}}``."""
        return training_step(self, batch, progress)

    def denoise(self, x: Tensor, level: Tensor, conditions: dict) -> Tensor:
        """One forward of the denoiser and all that conditions it.

        ``x`` fp32 ``[B, T, 4, h, w]``: noisy latents, for ``svd`` scaled for the network; ``level`` fp32 ``[B]``: the
        timestep 0..999, for ``svd`` 0.25 ln sigma; ``conditions`` as ``conditions.py`` makes them. Returns the raw
        output, fp32 ``[B, T, 4, h, w]``: v, for ``svd`` EDM's F. The same modules are called regardless of what is
        dropped.

        Raises ``ValueError`` where the reference's latents have another size than the clip's.
        """
        size, found = x.shape[-2:], conditions["references"].shape[-2:]
        if found != size:
            raise ValueError(
                f"reference latents of {found[0]} x {found[1]} were given next to a clip of "
                f"{size[0]} x {size[1]}, expected the same size; build the shards again with one size"
            )
        features = {"guidance": self.guide(conditions, size), **self.photo_features(conditions)}
        return self.predict(x, level, conditions, features)

    def predict(self, x: Tensor, level: Tensor, conditions: dict, features: dict) -> Tensor:
        """``denoise`` with the ``features`` of its conditions, ``guide``'s as ``guidance`` and those of
        ``photo_features``, which depend on no noise: a sampler makes them once."""
        guidance, tokens, references = (features[name] for name in ("guidance", "tokens", "references"))
        if self.config.backbone == "svd":
            return self.denoising_unet(x, level, conditions, guidance, tokens)
        return self.denoising_unet(x, level, conditions, guidance, tokens, references)

    def photo_features(self, conditions: dict) -> dict:
        """What the denoiser reads of the photo: ``tokens`` of ``face``, and ``references`` as ``ReferenceNet`` gives
        them, none with backbone ``svd``."""
        tokens, references = self.face(conditions), {}
        if self.config.backbone == "champ":
            given = conditions["embedding_given"][:, None, None].to(conditions["embedding"].dtype)
            references = self.reference_unet(conditions["references"], conditions["embedding"] * given)
        return {"tokens": tokens, "references": references}

    def poses(self, music: Tensor, embedding: Tensor, start: Tensor) -> dict[str, Tensor]:
        """MusicToPose's output without dropout; see ``MusicToPose.forward``."""
        return self.m2p(music, embedding.to(self.dtype), start)

    def guide(self, conditions: dict, size: tuple[int, int]) -> Tensor:
        """``[B, T, C, h, w]``: what is added behind the first convolution."""
        # Music is normalised in fp32 first.
        rendered = {
            name: condition.to(self.dtype) if guidance_type(name).from_pose else condition
            for name, condition in conditions["guidance"].items()
        }
        given = conditions["guidance_given"][:, None, None, None, None].to(self.dtype)
        return self.guidance(rendered, size).to(self.dtype) * (given * conditions["condition_scale"])

    def face(self, conditions: dict) -> Tensor:
        """``[B, K, D]``: tokens of the face, zeros where none is given. They read the first reference's embedding also
        where the denoiser is shown none, as StableAnimator's."""
        tokens = self.face_tokens(conditions["face"], conditions["embedding"][:, 0].to(self.dtype))
        return torch.where(conditions["face_given"][:, None, None], tokens, torch.zeros_like(tokens))

    def recompute_units(self) -> list[nn.Module]:
        """Modules whose activations need not be kept: the denoiser's layers and the guidance encoders. The reference
        net sees single frames."""
        if self.phase == "m2p":
            return []
        return [*self.denoising_unet.recompute_units(), *self.guidance.encoders.values()]


def mark_trained(network: nn.Module, patterns: Iterable[str]) -> None:
    """``requires_grad`` as ``patterns`` (``*``: one part of a dotted name) have it, and ``network.dtype`` for what is
    on the meta device without it."""
    wanted = [re.compile(re.escape(pattern).replace(r"\*", r"[^.]+") + r"\..+") for pattern in patterns]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(pattern.fullmatch(name) for pattern in wanted))
        if parameter.is_meta and not parameter.requires_grad:
            parameter.data = parameter.data.to(network.dtype)
