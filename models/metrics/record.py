"""What is known of one picture, video, scene or dance, be it generated or true."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagecoach.models.metrics.metric import Unavailable

Pose = tuple[Tensor, Tensor]
"""Points fp32 ``[T, 134, 2]`` divided by width and height, and their confidences ``[T, 134]``."""
Cameras = tuple[Tensor, Tensor]
"""Extrinsics ``[F, 3, 4]``, world to camera, and intrinsics ``[F, 4]`` in pixels."""
Faces = list[list[np.ndarray]]
"""For each picture its faces, by five points ``[5, 2]`` in pixels."""


@dataclass(frozen=True)
class ShownObject:
    """An object that was asked for: ``box`` x1 y1 x2 y2 in 0..1; ``reference`` uint8 ``[H, W, 3]``."""

    box: tuple[float, float, float, float]
    category: str
    caption: str = ""
    reference: np.ndarray | None = None


@dataclass(frozen=True)
class Record:
    """None is what is not known.

    ``frames`` fp32 ``[F, 3, H, W]`` in 0..1, one of a picture, ``rate`` of them per second; ``size``: height and width
    of what is not decoded; ``depth`` ``[F, H, W]``, 0
    where there is none; ``cameras`` of the scene that is seen, ``given`` those that were asked for; ``points``
    ``[N, 3]``; ``pose`` of the dance (asked for, or predicted by the network), ``estimated`` that which an estimator
    finds on the frames; ``beat`` ``[T]``, not 0 at the music's beats; ``flow`` ``[F - 1, 2, H, W]``; ``reference``
    uint8 ``[H, W, 3]``, with ``reference_faces``; ``faces`` detected on the frames; ``facts``: how
    long it took and how much memory.
    """

    name: str = ""
    seed: int | None = None
    frames: Tensor | None = None
    rate: float | None = None
    size: tuple[int, int] | None = None
    depth: Tensor | None = None
    cameras: Cameras | None = None
    given: Cameras | None = None
    points: np.ndarray | None = None
    pose: Pose | None = None
    estimated: Pose | None = None
    beat: Tensor | None = None
    flow: Tensor | None = None
    prompt: str | None = None
    objects: tuple[ShownObject, ...] | None = None
    reference: np.ndarray | None = None
    reference_faces: Faces | None = None
    faces: Faces | None = None
    facts: dict[str, float] = field(default_factory=dict)

    def need(self, name: str, whose: str) -> Any:
        """A field. Raises ``Unavailable`` where it is not known."""
        value = getattr(self, name)
        if value is None:
            raise Unavailable(f"no {name.replace('_', ' ')} {whose}")
        return value

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width in pixels. Raises ``Unavailable`` where neither frames nor depth are known."""
        maps = self.depth if self.frames is None else self.frames
        if maps is None:
            if self.size is not None:
                return self.size
            raise Unavailable("no frames, whose size says how long a pixel is")
        height, width = maps.shape[-2:]
        return int(height), int(width)


def trivial(truth: Record) -> Record:
    """What is known without any model, whose numbers are the baseline: the first frame and the first pose held, of one
    picture its mean colour, the camera at rest, the clip's median depth in every pixel. What is asked for (prompt,
    objects, beats) stays."""
    frames, depth, cameras, pose = truth.frames, truth.depth, truth.cameras, truth.pose
    if frames is not None:
        held = frames[:1] if len(frames) > 1 else frames.mean((2, 3), keepdim=True)
        frames = held.expand_as(frames)
    if depth is not None:
        there = depth > 0
        depth = torch.full_like(depth, float(depth[there].median()) if there.any() else 0.0)
    if cameras is not None:
        cameras = (cameras[0][:1].expand_as(cameras[0]), cameras[1])
    if pose is not None:
        pose = (pose[0][:1].expand_as(pose[0]), pose[1][:1].expand_as(pose[1]))
    return replace(
        truth,
        frames=frames,
        depth=depth,
        cameras=cameras,
        given=None,
        pose=pose,
        points=None,
        estimated=None,
        faces=None,
        facts={},
    )
