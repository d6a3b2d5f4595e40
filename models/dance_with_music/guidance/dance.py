"""The guidance of a whole dance, made once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stagecoach.data.dance_with_music.schema import LATENT_STRIDE
from stagecoach.models.dance_with_music.config import DanceConfig
from stagecoach.models.dance_with_music.guidance.types import GuidanceInput, guidance_type
from stagecoach.models.dance_with_music.music_to_pose.dance import Dance


def encode_dance(
    call: Callable[..., Any],
    config: DanceConfig,
    pose: Tensor,
    dance: Dance | None,
    rows: Tensor | None,
    strength: float,
    size: tuple[int, int],
    device: torch.device | str,
    maps: Tensor | None = None,
) -> Tensor:
    """What the guidance encoders of the network ``call`` make of a dance, ``[1, T, C, h, w]`` on the CPU, times
    ``strength``. A few frames are drawn and encoded at a time, each once: a minute of 512 x 512 has gigabytes.

    ``pose`` ``[T, 134, 3]``; ``dance``, where MusicToPose made it, says besides how sure it is; ``rows`` of music
    ``[T, Dm]``; ``size``: height and width in pixels; ``maps`` of music ``[T, C, H, W]``.
    """
    read_by = config if dance is None else config.model_copy(update={"m2p": dance.config})
    logits = None if dance is None else {n: v for n, v in dance.output.items() if n not in ("face", "conf")}
    given = torch.ones(1, dtype=torch.bool, device=device)
    latent = tuple(side // LATENT_STRIDE for side in size)
    parts = []
    for frames in torch.arange(len(pose)).split(config.guidance.chunk):
        points = pose[None, frames].to(device)
        heard = points.new_zeros(1, len(frames), 0) if rows is None else rows[None, frames].to(device)
        sure = None if logits is None else {name: value[:, frames] for name, value in logits.items()}
        seen = None if maps is None else maps[None, frames].to(device)
        asked = GuidanceInput(points[..., :2], points[..., 2], sure, heard, *size, seen)
        rendered = {name: guidance_type(name).render(asked, read_by) for name in config.guidance.types}
        conditions = {"guidance": rendered, "guidance_given": given, "condition_scale": strength}
        parts.append(call("guide", conditions, latent).cpu())
    return torch.cat(parts, dim=1)
