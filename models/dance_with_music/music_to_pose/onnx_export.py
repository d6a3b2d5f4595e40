"""MusicToPose and guidance encoders as ONNX files, for clips of any length (the guide's review asks for it).

network = get_family("dance_with_music").build(config, 1, "cpu", torch.float32)  # and an adapter's tensors
export_m2p(network.m2p, "m2p.onnx")
export_guidance(network.guidance.encoders["pose"], torch.zeros(1, 134, 64, 64), "guidance_pose.onnx")
"""

import os

import torch
from torch import Tensor, nn

from stagecoach.data.dance_with_music.schema import KEYPOINTS
from stagecoach.data.files import atomic_file
from stagecoach.models.dance_with_music.music_to_pose.model import MusicToPose

OPSET = 17
TRACED_FRAMES = 8


def export_m2p(model: MusicToPose, path: str | os.PathLike[str]) -> None:
    """Inputs ``music`` ``[B, T, Dm]``, ``ref`` ``[B, Dr]`` and ``pose0`` ``[B, 134, 3]``, outputs under the names and
    in the order of ``MusicToPose.forward``, all fp32, B and T free."""
    like = next(model.parameters())
    given = (
        torch.zeros(1, TRACED_FRAMES, model.config.music_dim),
        torch.zeros(1, model.reference.in_features),
        torch.zeros(1, KEYPOINTS, 3),
    )
    given = tuple(x.to(like.device) for x in given)
    maps = ["logits"] if model.config.head == "full2d" else ["logits_x", "logits_y"]
    free = {name: {0: "B", 1: "T"} for name in ("music", *maps, "conf")} | {
        name: {0: "B"} for name in ("ref", "pose0", "face")
    }
    _export(_Values(model), given, path, ["music", "ref", "pose0"], [*maps, "conf", "face"], free)


def export_guidance(encoder: nn.Module, condition: Tensor, path: str | os.PathLike[str]) -> None:
    """Input ``condition`` ``[N, ...]`` of the other sizes of the one given, frames of a clip of any length; output
    ``guidance`` ``[N, C, h, w]``, fp32."""
    device = next(encoder.parameters()).device
    _export(
        encoder,
        (condition.float().to(device),),
        path,
        ["condition"],
        ["guidance"],
        {"condition": {0: "N"}, "guidance": {0: "N"}},
    )


class _Values(nn.Module):
    """The outputs without their names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(*inputs).values())


def _export(
    module: nn.Module,
    given: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    inputs: list[str],
    outputs: list[str],
    free: dict[str, dict[int, str]],
) -> None:
    with atomic_file(path) as handle:
        # The exporter of traces: that of graphs needs onnxscript, and gains nothing where there are no branches.
        torch.onnx.export(
            module,
            given,
            handle,
            dynamo=False,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=free,
        )
