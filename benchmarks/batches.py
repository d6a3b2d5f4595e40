"""Random batches in the shapes of a family's schema, with content that its losses can digest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel

from stagecoach.data.format.schema import Field
from stagecoach.models.common.keyed import rng_keys
from stagecoach.models.family import Batch, Family

TORCH_DTYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "f64": torch.float64,
    "u8": torch.uint8,
    "u16": torch.uint16,
    "i64": torch.int64,
    "image": torch.uint8,
}


@dataclass(frozen=True)
class Content:
    """What a schema does not say: ``sizes`` of its named dimensions at a config and a stage, and a ``fill`` that
    overwrites the random numbers of fields in which not every number makes sense."""

    sizes: Callable[[Any, int], dict[str, int]]
    fill: Callable[[Batch], None]


def synthetic_batch(
    family: Family, config: BaseModel, samples: int, device: torch.device | str, seed: int, stage: int
) -> Batch:
    """A batch of ``samples`` with every field that the schema requires, standard normal (integers: 0 to 9) but for what
    the family's ``Content`` sets. Raises ``ValueError`` for a family without an entry in ``CONTENT``."""
    if family.name not in CONTENT:
        raise ValueError(
            f"family {family.name!r} has no entry in benchmarks/batches.py, expected one beside {sorted(CONTENT)}"
        )
    content = CONTENT[family.name]
    sizes = content.sizes(config, stage)
    generator = torch.Generator(device).manual_seed(seed)
    batch: Batch = {
        field.name: _random(field, sizes, samples, generator)
        for field in family.schema(config).fields
        if not field.optional
    }
    content.fill(batch)
    uids = list(range(seed * samples, (seed + 1) * samples))
    return batch | {
        "uid": torch.tensor(uids, device=device),
        "key": [f"random{uid}" for uid in uids],
        "rng_key": rng_keys(seed, stage, uids),
    }


def _random(field: Field, sizes: dict[str, int], samples: int, generator: torch.Generator) -> torch.Tensor:
    shape = [samples, *(dim if isinstance(dim, int) else sizes[dim] for dim in field.shape)]
    dtype = TORCH_DTYPES[field.dtype]
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    return torch.randint(0, 10, shape, generator=generator, device=generator.device, dtype=dtype)


def _fantasy_world_sizes(config: Any, stage: int) -> dict[str, int]:
    clip = config.clip
    frames, height, width = clip.latent
    return {
        "f": frames,
        "h": height,
        "w": width,
        "F": clip.frames,
        "H": clip.height,
        "W": clip.width,
        "L": config.backbone.text_length,
    }


def _fantasy_world_fill(batch: Batch) -> None:
    """Depth around 1 scene unit, a camera that moves forward without turning, a field of view of 64 degrees."""
    depth, intrinsics = batch["depth"], batch["intrinsics"]
    frames, height, width = depth.shape[1:]
    depth.mul_(0.2).abs_().add_(0.5)
    extrinsics = torch.eye(4, device=depth.device)[:3].repeat(len(depth), frames, 1, 1)
    extrinsics[..., 2, 3] = -torch.linspace(0, 0.4, frames, device=depth.device)
    batch["extrinsics"] = extrinsics
    intrinsics.copy_(intrinsics.new_tensor([0.8 * width, 0.8 * width, width / 2, height / 2]).expand_as(intrinsics))


def _movie_post_production_sizes(config: Any, stage: int) -> dict[str, int]:
    from stagecoach.models.movie_post_production.flops import REFERENCES

    h, w = (2 * side for side in config.image.grid)
    return {
        "h": h,
        "w": w,
        "H": config.image.height,
        "W": config.image.width,
        "L": config.backbone.text_length,
        "N": min(config.instance.max_refs, REFERENCES),
    }


def _movie_post_production_fill(batch: Batch) -> None:
    """Square boxes that together cover the picture twice, as the family's FLOPs are counted for, anywhere in it; unit
    vectors; all three depths."""
    boxes, count = batch["boxes"], batch["boxes"].shape[1]
    half = min(0.5, 0.5 * (2 / count) ** 0.5)
    middle = half + (1 - 2 * half) * torch.special.ndtr(boxes[..., :2])
    boxes.copy_(torch.cat([middle - half, middle + half], -1).clamp(0, 1))
    batch["depth"].remainder_(3)
    for name in ("clip", "dino"):
        batch[name] = torch.nn.functional.normalize(batch[name].float(), dim=-1).to(batch[name].dtype)


def _dance_sizes(config: Any, stage: int) -> dict[str, int]:
    """The longest window of the stage."""
    from stagecoach.models.dance_with_music.stages import window_frames

    h, w = config.picture.latent
    longest = window_frames(config.frames, config.schedules.grown, config.phase(stage), 1, 1, 10**6)
    return {
        "F": longest,
        "R": config.reference.count,
        "h": h,
        "w": w,
        "H": config.picture.height,
        "W": config.picture.width,
    }


def _dance_fill(batch: Batch) -> None:
    """Points around the middle of the picture, all found; a face of a quarter of it in every frame; unit vectors;
    references that are pictures of their own."""
    xy = batch["pose_xy"]
    xy.copy_((65535 * torch.special.ndtr(torch.randn(xy.shape, device=xy.device))).to(torch.int32).to(xy.dtype))
    batch["pose_conf"].fill_(255)
    batch["face_box"].copy_(batch["face_box"].new_tensor([0.25, 0.25, 0.75, 0.75]).expand_as(batch["face_box"]))
    for name in ("face_valid", "ref_face_valid"):
        batch[name].fill_(1)
    batch["ref_arcface_norm"].fill_(20)
    batch["ref_frame"].fill_(-1)
    batch["ref_arcface"] = torch.nn.functional.normalize(batch["ref_arcface"], dim=-1)
    batch["window_start"] = torch.zeros(len(xy), dtype=torch.int64, device=xy.device)


CONTENT: dict[str, Content] = {
    "dance_with_music": Content(_dance_sizes, _dance_fill),
    "fantasy_world": Content(_fantasy_world_sizes, _fantasy_world_fill),
    "movie_post_production": Content(_movie_post_production_sizes, _movie_post_production_fill),
}
