"""DanceWithMusic as components of a pipeline of diffusers."""

from pathlib import Path
from shutil import copyfile
from typing import Any, Self

from diffusers import ModelMixin, OnnxRuntimeModel

from stagecoach.data.encoding.face_encoder import FaceEncoder
from stagecoach.models.common.component import NetworkComponent
from stagecoach.models.dance_with_music.config import DanceConfig
from stagecoach.models.dance_with_music.network import DanceNetwork, build_network


class DanceTransformer(NetworkComponent, ModelMixin):  # diffusers looks for the name in this module
    """A ``DanceNetwork`` of any phase, with a denoiser or MusicToPose alone."""

    config_type = DanceConfig
    build = staticmethod(build_network)
    network: DanceNetwork

    def forward(self, method: str, *inputs: Any, **named: Any) -> Any:
        """What the network's ``method`` gives, so that hooks of offloading see each call."""
        return getattr(self.network, method)(*inputs, **named)


class FaceModel(OnnxRuntimeModel):  # so that diffusers saves and opens it
    """ArcFace, the ``.onnx`` that shards are built with."""

    NAME = "arcface.onnx"

    def __init__(self, path: str | Path) -> None:
        self.path, self.encoder = Path(path), FaceEncoder(Path(path))

    def save_pretrained(self, save_directory: str | Path, **named: Any) -> None:
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        copyfile(self.path, Path(save_directory) / self.NAME)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **named: Any) -> Self:
        return cls(Path(folder) / cls.NAME)
