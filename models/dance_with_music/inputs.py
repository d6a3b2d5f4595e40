"""What a user gives the pipeline - components, photos, poses - as the network takes it, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from stagecoach.data.dance_with_music.schema import FACE_DIM, FRAME_RATE, KEYPOINTS
from stagecoach.data.dance_with_music.skeleton import five_points
from stagecoach.data.dance_with_music.track import Track, read_track
from stagecoach.data.encoding.face_encoder import align_face
from stagecoach.data.encoding.latent_encoders import LatentEncoder
from stagecoach.data.pictures import CoverCrop
from stagecoach.models.common.pictures import fitted, read_pixels
from stagecoach.models.dance_with_music.config import DanceConfig


@dataclass
class DanceOutput(BaseOutput):
    """Videos of B samples of T frames.

    ``frames``: as ``output_type`` says: ``np`` fp32 ``[B, T, H, W, 3]`` in 0..1, ``pt`` ``[B, T, 3, H, W]``, ``pil``
    lists of pictures, ``latent`` ``[B, T, 4, h, w]``, scaled. ``pose`` fp32 ``[T, 134, 3]`` on the CPU: what was
    danced, given or predicted, x and y divided by width and height of the video, confidence."""

    frames: Any
    pose: Tensor


def prepare_photos(image: Any, height: int, width: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One picture or several (PIL, uint8 ``[H, W, 3]``, a tensor ``[3, H, W]`` in 0..1) -> all of each, uint8, for
    CLIP, and its middle at the video's size. Raises ``ValueError``."""
    several = image if isinstance(image, Sequence) else list(image) if getattr(image, "ndim", 3) == 4 else [image]
    whole = [read_pixels(one) for one in several]
    if not whole:
        raise ValueError("no picture given, expected at least one photo of the dancer")
    return whole, [fitted(picture, height, width) for picture in whole]


def photo_latents(vae: Any, photos: Sequence[np.ndarray], noise: Tensor | None = None) -> Tensor:
    """Scaled latents ``[R, 4, h, w]`` of pictures uint8 ``[H, W, 3]``, or ``[B, R, 4, h, w]`` under ``noise``
    ``[B, R, 3, H, W]`` on their pixels in -1..1."""
    encoder = LatentEncoder.of(vae, False)
    if noise is None:
        return torch.stack(encoder.encode(photos))
    found = encoder.encode([*photos] * len(noise), noise.flatten(0, 1))
    return torch.stack(found).unflatten(0, noise.shape[:2])


def cut_face(picture: np.ndarray, pose: Any) -> np.ndarray | None:
    """The face of a photo as ArcFace takes it, by the ``pose`` ``[134, 3]`` in it (divided by its own width and
    height); None where eyes, nose and mouth are not among what was found. Raises ``ValueError``."""
    points = prepare_pose(pose, 1)[0].double().numpy()
    five = five_points(points[:, :2], points[:, 2])
    return None if five is None else align_face(picture, five * picture.shape[1::-1])


def prepare_pose(pose: Any, frames: int | None = None) -> Tensor:
    """``[T, 134, 3]`` (x and y divided by width and height, confidence), or ``[134, 3]`` for one frame -> fp32 on the
    CPU. Raises ``ValueError`` for another shape and, where ``frames`` is given, for fewer."""
    found = torch.as_tensor(pose.cpu() if isinstance(pose, Tensor) else np.asarray(pose), dtype=torch.float32)
    found = found[None] if found.ndim == 2 else found
    if found.ndim != 3 or found.shape[1:] != (KEYPOINTS, 3) or not found.isfinite().all():
        raise ValueError(
            f"a pose of shape {list(found.shape)} was given, expected finite numbers [T, {KEYPOINTS}, 3]: x and y "
            "divided by width and height, confidence"
        )
    if frames is not None and len(found) < frames:
        raise ValueError(f"poses of {len(found)} frames given for a video of {frames}, expected as many")
    return found if frames is None else found[:frames]


def prepare_face(vector: Any) -> tuple[Tensor, Tensor]:
    """ArcFace's vector of a face, ``[512]`` at its length, None or zeros for none -> ``[1, 512]`` and whether there is
    one, bool ``[1]``. Raises ``ValueError``."""
    face = torch.zeros(FACE_DIM) if vector is None else torch.as_tensor(np.asarray(vector), dtype=torch.float32)
    face = face.flatten()
    if len(face) != FACE_DIM:
        raise ValueError(f"a face of {len(face)} numbers was given, expected ArcFace's {FACE_DIM}")
    return face[None], face[None].norm(dim=-1) > 0


def move_pose(pose: Tensor, size: tuple[int, int], height: int, width: int) -> Tensor:
    """A pose ``[..., 134, 3]`` in a picture of ``size`` -> in the middle of it that a video of this shape shows; what
    is outside was not found."""
    xy = torch.from_numpy(CoverCrop.of(*size, height, width).points(pose[..., :2].double().numpy())).float()
    inside = ((xy >= 0) & (xy <= 1)).all(-1)
    return torch.cat([xy.clamp(0, 1), (pose[..., 2] * inside)[..., None]], dim=-1)


def read_rows(config: DanceConfig, song: Any, music: Any, needed: bool) -> Tensor | None:
    """Rows of music at the network's rate, fp32 ``[F, Dm]``, of ``music`` or else of the ``song``, a file or a
    ``Track``. Raises ``ValueError`` where they are needed and not given."""
    if music is None and song is not None:
        music = (song if isinstance(song, Track) else read_track(Path(song), stride=config.frames.stride)).rows
    if music is not None:
        return torch.as_tensor(music, dtype=torch.float32)
    guidance = config.guidance
    if needed or "music" in guidance.types or ("music_map" in guidance.types and guidance.map_channels is None):
        raise ValueError("neither song nor music given, expected one of them")
    return None


def read_maps(config: DanceConfig, song: Any, music_map: Any, frames: int) -> Tensor | None:
    """Pictures of the music, fp32 ``[F, C, H, W]``, where the network is guided by such. Raises ``ValueError``."""
    channels = config.guidance.map_channels
    if channels is None:
        return None
    if music_map is None and isinstance(song, Track):
        music_map = song.maps
    found = None if music_map is None else torch.as_tensor(music_map, dtype=torch.float32)
    if found is None or found.ndim != 4 or found.shape[1] != channels or len(found) < frames:
        raise ValueError(
            f"maps of music {None if found is None else list(found.shape)} given, expected music_map [F, {channels}"
            f", H, W] of the {frames} frames at {FRAME_RATE / config.frames.stride:g} per second"
        )
    return found
