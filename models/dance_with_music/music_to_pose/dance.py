"""The poses of a song of any length, by MusicToPose in windows of the length that it is trained on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stagecoach.models.dance_with_music.config import M2PConfig
from stagecoach.models.dance_with_music.music_to_pose.heatmaps import coordinates
from stagecoach.models.dance_with_music.windows import Windows, fades

SHARED = 5
"""Windows share a fifth of their frames."""
Poses = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
"""(music ``[B, T, Dm]``, CLIP's embedding ``[B, D]``, start pose ``[B, 134, 3]``) -> ``MusicToPose.forward``'s."""


@dataclass(frozen=True)
class Dance:
    """MusicToPose's ``output`` over T frames and the ``config`` that it is to be read by."""

    output: dict[str, Tensor]
    config: M2PConfig

    @property
    def xy(self) -> Tensor:
        """``[B, T, 134, 2]``, divided by width and height."""
        return coordinates(self.output, self.config.temperature)

    @property
    def conf(self) -> Tensor:
        """``[B, T, 134]`` in 0..1."""
        return self.output["conf"].sigmoid()

    @property
    def points(self) -> Tensor:
        """``[B, T, 134, 3]``: both."""
        return torch.cat([self.xy, self.conf[..., None]], dim=-1)


@torch.no_grad()
def predict_dance(
    poses: Poses, config: M2PConfig, music: Tensor, embedding: Tensor, start: Tensor, length: int
) -> Dance:
    """The poses of ``music`` ``[B, T, Dm]``, from the pose ``start`` ``[B, 134, 3]`` on, in windows of ``length``
    frames.

    Each window starts from the pose that the one before gives its first frame. Where they overlap logits are
    cross-faded: between two Gaussians of one width that is the Gaussian that moves from one to the other. The face is
    the mean of the windows', of length 1.
    """
    found: dict[str, Tensor] = {}
    faces = []
    for frames, weight in fades(music.shape[1], Windows(length, length // SHARED)):
        if found:
            at = {name: value[:, frames.start : frames.start + 1] for name, value in found.items()}
            start = Dance(at, config).points[:, 0]
        output = poses(music[:, frames], embedding, start)
        faces.append(output.pop("face"))
        for name, value in output.items():
            if name not in found:
                found[name] = value.new_zeros(len(value), music.shape[1], *value.shape[2:])
            share = weight.to(value).view(-1, *[1] * (value.ndim - 2))
            found[name][:, frames] = found[name][:, frames].lerp(value, share.expand_as(value))
    face = torch.nn.functional.normalize(torch.stack(faces).mean(0), dim=-1)
    return Dance({**found, "face": face}, config)
