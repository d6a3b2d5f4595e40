"""Videos longer than the clips of training: clips that start where the one before ends, joined in one world."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagecoach.data.fantasy_world.cameras import canonicalise, unproject
from stagecoach.models.fantasy_world.inputs import FantasyWorldOutput
from stagecoach.models.fantasy_world.pipeline import FantasyWorldPipeline

DENSE = ("depth", "depth_confidence", "points", "points_confidence")


def sample_long(
    pipeline: FantasyWorldPipeline,
    image: Any,
    cameras: Any,
    intrinsics: Any,
    num_frames: int | None = None,
    **request: Any,
) -> FantasyWorldOutput:
    """One video over all of ``cameras`` ``[T, 3, 4]`` (w2c, in units of the first clip's scene) with ``intrinsics``
    ``[T, 4]``, by an image-to-video network: T = n (F - 1) + 1 for n clips of ``num_frames`` F.

    The last frame of a clip is the first picture of the next one. A network takes translations in units of its clip's
    scene, the mean distance of its points from the first camera; those of a next clip are divided by what the clip
    before says of that distance at its last frame. ``request``: other arguments of a call, of one sample; a
    ``generator`` goes on from clip to clip.

    Returns what ``join`` makes of the clips, ``frames`` fp32 ``[1, T, H, W, 3]``. Raises ``ValueError``.
    """
    config = pipeline.transformer.network.config
    if not config.image_to_video:
        raise ValueError("this network is text-to-video and cannot go on from a picture, expected image-to-video")
    frames = num_frames or config.clip.frames
    poses = torch.as_tensor(np.asarray(cameras), dtype=torch.float64)[:, :3]
    lenses = torch.as_tensor(np.asarray(intrinsics), dtype=torch.float32)
    total, step = len(poses), frames - 1
    if total < frames or (total - 1) % step:
        more = -(-max(total - 1, step) // step) * step + 1
        raise ValueError(
            f"cameras of {total} frames are no row of clips of {frames}; give {more} (n ({frames} - 1) + 1)"
        )
    clips: list[FantasyWorldOutput] = []
    unit = 1.0  # of the latest clip, in that of the first
    for start in range(0, total - 1, step):
        part = slice(start, start + frames)
        path = canonicalise(poses[part])
        path[..., 3] /= unit * last_distance(clips[-1]) if clips else 1.0
        clip = pipeline(
            **request, image=image, cameras=path, intrinsics=lenses[part], num_frames=frames, output_type="np"
        )
        if len(clip.frames) != 1:
            raise ValueError(f"{len(clip.frames)} samples were asked for, expected one: clips go on from one picture")
        unit *= unit_between(clips[-1], clip) if clips else 1.0
        clips.append(clip)
        image = (clip.frames[0, -1] * 255).round().astype(np.uint8)
    return join(clips)


def last_distance(clip: FantasyWorldOutput) -> float:
    """Mean distance of what the last frame shows from its camera, in units of the clip."""
    lens = clip.intrinsics[0, -1]
    seen = unproject(clip.depth[0, -1], lens, torch.eye(4)[:3])
    return float(seen.norm(dim=-1).mean())


def unit_between(before: FantasyWorldOutput, after: FantasyWorldOutput) -> float:
    """The unit of ``after`` in that of ``before``: the median ratio of the depths of the frame that they share."""
    return float((before.depth[0, -1] / after.depth[0, 0]).median())


def join(clips: Sequence[FantasyWorldOutput]) -> FantasyWorldOutput:
    """Clips of one sample each, of which each begins with the last frame of the one before, as one clip in the world
    and the unit of the first: depth and points are scaled by ``unit_between``, and the world of a clip stands where the
    camera of that frame was predicted. The shared frame is that of the earlier clip."""
    scale, origin = 1.0, torch.eye(4, dtype=torch.float64)
    parts: dict[str, list[Any]] = {name: [] for name in ("frames", *DENSE, "extrinsics", "intrinsics")}
    for i, clip in enumerate(clips):
        relative = clip.extrinsics.double()
        if i:
            scale *= unit_between(clips[i - 1], clip)
            relative = canonicalise(relative)
        relative = _square(relative)
        relative[..., :3, 3] *= scale
        extrinsics = relative @ origin
        # Points stand in the world of the clip's own camera 0, not in its predicted pose.
        rotation, translation = origin[:3, :3], origin[:3, 3]
        points = ((clip.points.double() * scale - translation) @ rotation).float()
        found = {
            "frames": torch.as_tensor(clip.frames),
            "depth": clip.depth * scale,
            "depth_confidence": clip.depth_confidence,
            "points": points,
            "points_confidence": clip.points_confidence,
            "extrinsics": extrinsics[..., :3, :].float(),
            "intrinsics": clip.intrinsics,
        }
        for name, value in found.items():
            parts[name].append(value[:, 1 if i else 0 :])
        origin = extrinsics[0, -1]
    joined = {name: torch.cat(values, 1) for name, values in parts.items()}
    joined["frames"] = joined["frames"].numpy()
    return FantasyWorldOutput(**joined, sigma_read=clips[0].sigma_read)


def _square(extrinsics: Tensor) -> Tensor:
    """``[..., 3, 4]`` -> ``[..., 4, 4]``."""
    last = extrinsics.new_tensor([0, 0, 0, 1]).expand(*extrinsics.shape[:-2], 1, 4)
    return torch.cat([extrinsics, last], -2)
