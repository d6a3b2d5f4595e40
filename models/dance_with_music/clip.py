"""What a batch holds, as the losses and the networks take it: fp32 points, chosen references, target frames."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from stagecoach.data.dance_with_music.schema import LATENT_STRIDE
from stagecoach.models.common.keyed import keyed_rand
from stagecoach.models.dance_with_music.config import DanceConfig
from stagecoach.models.dance_with_music.guidance.rendering import face_masks
from stagecoach.models.family import Batch

POSE_STEPS, CONFIDENCE_STEPS = 65535, 255


@dataclass(frozen=True)
class Clip:
    """T frames of B samples. ``latents`` fp32 ``[B, T, 4, h, w]``; ``music`` ``[B, T, Dm]``; ``xy`` fp32 ``[B, T, 134,
    2]`` divided by width and height; ``conf`` fp32 ``[B, T, 134]`` in 0..1; ``beat`` ``[B, T]``; ``face_box``
    ``[B, T, 4]``, ``face_valid`` ``[B, T]``; ``music_map`` ``[B, T, C, H, W]`` where the shards hold such."""

    latents: Tensor
    music: Tensor
    xy: Tensor
    conf: Tensor
    beat: Tensor
    face_box: Tensor
    face_valid: Tensor
    music_map: Tensor | None = None

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width in pixels."""
        h, w = self.latents.shape[-2:]
        return h * LATENT_STRIDE, w * LATENT_STRIDE

    @property
    def faces(self) -> Tensor:
        """fp32 ``[B, T, h, w]``, 1 where a face is."""
        return face_masks(self.face_box, self.face_valid, *self.latents.shape[-2:])

    @property
    def start_pose(self) -> Tensor:
        """``[B, 134, 3]``: points and confidences of the first frame."""
        return torch.cat([self.xy[:, 0], self.conf[:, 0, :, None]], dim=-1)

    def first(self, count: int) -> Clip:
        """At most the first ``count`` frames."""
        return replace(self, **{name: value[:, :count] for name, value in self._tensors})

    def at(self, frames: Tensor) -> Clip:
        """The ``frames`` ``[B, K]`` of each sample."""
        return replace(self, **{name: take(value, frames) for name, value in self._tensors})

    @property
    def _tensors(self) -> list[tuple[str, Tensor]]:
        found = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in found if value is not None]


@dataclass(frozen=True)
class References:
    """R references per sample. ``latents`` fp32 ``[B, R, 4, h, w]``; ``embedding`` ``[B, R, D]``, CLIP's; of the first
    one ``face`` fp32 ``[B, 512]``, a unit vector, its ``length`` fp32 ``[B]``, and ``has_face`` bool ``[B]``."""

    latents: Tensor
    embedding: Tensor
    face: Tensor
    length: Tensor
    has_face: Tensor


def read_clip(batch: Batch) -> Clip:
    """The frames of a batch: poses and confidences back in 0..1, latents and boxes in fp32."""
    return Clip(
        batch["latents"].float(),
        batch["music"],
        batch["pose_xy"].to(torch.float32) / POSE_STEPS,
        batch["pose_conf"].to(torch.float32) / CONFIDENCE_STEPS,
        batch["beat"],
        batch["face_box"].float(),
        batch["face_valid"],
        batch.get("music_map"),
    )


def read_references(batch: Batch, config: DanceConfig) -> References:
    """``config.reference.count`` of those that the samples have, or all where that is fewer."""
    chosen = choose_references(batch, config)
    first = chosen[:, :1]
    face, length, valid = (
        take(batch[f"ref_{name}"], first)[:, 0] for name in ("arcface", "arcface_norm", "face_valid")
    )
    return References(
        take(batch["ref_latents"], chosen).float(),
        take(batch["ref_clip"], chosen),
        face.float(),
        length.float(),
        valid.bool(),
    )


def choose_references(batch: Batch, config: DanceConfig) -> Tensor:
    """int64 ``[B, R]``, keyed by the sample: no frame from inside the window while there are others."""
    frame, start = batch["ref_frame"], batch["window_start"][:, None]
    last = start + (batch["pose_xy"].shape[1] - 1) * config.frames.stride
    inside = (frame >= start) & (frame <= last)
    order = keyed_rand(batch, "reference", frame.shape[1:]) + inside
    return order.argsort(dim=1)[:, : config.reference.count]


def target_frames(batch: Batch, config: DanceConfig) -> Tensor:
    """int64 ``[B, K]``: the neighbouring frames that stage B denoises, keyed by the sample."""
    frames, count = batch["pose_xy"].shape[1], config.frames.target
    first = (keyed_rand(batch, "target_frame") * (frames - count + 1)).floor().long()
    return first[:, None] + torch.arange(count, device=first.device)


def take(values: Tensor, index: Tensor) -> Tensor:
    """``values`` ``[B, N, ...]`` at ``index`` ``[B, K]`` -> ``[B, K, ...]``."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    return values[rows, index]
