"""ArcFace's network as a torch module, so that gradients pass through it: IResNet-100 (arXiv 1801.07698, the improved
residual units of its section 3.2), with the names of insightface's ``iresnet100``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stagecoach.data.dance_with_music.schema import FACE_DIM
from stagecoach.models.common.materialise import WeightFile, keyed_init

SIDE = 112
"""Pixels per side of a face."""
WIDTHS, DEPTHS = (64, 128, 256, 512), (3, 13, 30, 3)
TINY_WIDTHS, TINY_DEPTHS = (4, 4, 8, 8), (1, 1, 1, 1)
_COUNTER = ".num_batches_tracked"


class Unit(nn.Module):
    """Norm, 3 x 3, norm, PReLU, 3 x 3 with ``stride``, norm, residual."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = (
            None
            if stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[M, inputs, h, w]`` -> ``[M, outputs, h / stride, w / stride]``."""
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + (x if self.downsample is None else self.downsample(x))


class ArcFace(nn.Module):
    """Frozen, always in evaluation mode. Full size: 65,156,160 parameters."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, depths: tuple[int, ...] = DEPTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        before = widths[0]
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
            units = [Unit(before if j == 0 else width, width, 2 if j == 0 else 1) for j in range(depth)]
            self.add_module(f"layer{i}", nn.Sequential(*units))
            before = width
        self.bn2 = nn.BatchNorm2d(before)
        self.fc = nn.Linear(before * (SIDE // 16) ** 2, FACE_DIM)
        self.features = nn.BatchNorm1d(FACE_DIM)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ArcFace:
        """Statistics of the norms are the published ones, never a batch's."""
        return super().train(False)

    def forward(self, faces: Tensor) -> Tensor:
        """RGB in [-1, 1], ``[M, 3, 112, 112]``, aligned or cropped -> fp32 ``[M, 512]``, not normalised. Gradients flow
        to ``faces``. Raises ``ValueError`` for faces of another size."""
        if faces.shape[1:] != (3, SIDE, SIDE):
            raise ValueError(
                f"faces of shape {list(faces.shape)} were given to ArcFace, expected [M, 3, {SIDE}, "
                f"{SIDE}]; crop_faces makes such"
            )
        x = self.prelu(self.bn1(self.conv1(faces.float())))
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))


def load_arcface(path: str, device: torch.device | str) -> ArcFace:
    """insightface's ``iresnet100`` weights (of ``glintr100``, say), ``.safetensors`` or ``.pth``, strictly. Raises
    ``ValueError`` naming the file."""
    model, source = open_arcface(path)
    model.load_state_dict(
        {
            name: torch.zeros((), dtype=torch.int64, device=device)
            if name.endswith(_COUNTER)
            else source.read(name).to(device=device, dtype=torch.float32, copy=True)
            for name in model.state_dict()
        },
        assign=True,
    )
    return model.requires_grad_(False)


def open_arcface(path: str) -> tuple[ArcFace, WeightFile]:
    """The network on the meta device and its weights, checked by name and shape."""
    with torch.device("meta"):
        model = ArcFace()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.endswith(_COUNTER)}
    return model, WeightFile(path, shapes, lambda name: None if name.endswith(_COUNTER) else name)


def make_arcface(device: torch.device | str, small: bool = True) -> ArcFace:
    """One of random weights, for tests, benchmarks and the meta device: its vectors say nothing about faces."""
    with keyed_init("arcface", "meta" if torch.device(device).type == "meta" else "cpu"):
        return (ArcFace(TINY_WIDTHS, TINY_DEPTHS) if small else ArcFace()).to(device)
