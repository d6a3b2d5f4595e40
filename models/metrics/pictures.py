"""Pictures and frames against the true ones."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from stagecoach.data.files import import_extra
from stagecoach.models.common.reduce import Measured, sum_count_per_sample
from stagecoach.models.metrics.metric import Metric, Unavailable

PSNR = Metric("psnr", "dB", True)
METRICS = (
    PSNR,
    Metric("ssim", "0..1", True),
    Metric("ms_ssim", "0..1", True),
    Metric("lpips", needs="torchvision's AlexNet or VGG-16 file"),
)
MS_SSIM_SIDE = 176
"""Five scales, each half of the one before, with a window of 11 at the smallest: 11 times 2^4 pixels."""


def psnr(frames: Tensor, truth: Tensor, low: float = 0.0, high: float = 1.0) -> Measured:
    """Peak signal-to-noise ratio in dB of frames ``[B, n, 3, H, W]`` in ``low..high``, frame by frame (at most 100), in
    floats (an evaluator that rounds to bytes and overflows gives some 10 dB more)."""
    error = (frames.float().clamp(low, high) - truth.float().clamp(low, high)).square().mean((2, 3, 4))
    return sum_count_per_sample(-10 * (error / (high - low) ** 2).clamp_min(1e-10).log10())


def ssim(frames: Tensor, truth: Tensor) -> Measured:
    """Structural similarity (Z. Wang et al., 2004; Gaussian window of 11 pixels, sigma 1.5) of frames
    ``[B, n, 3, H, W]`` in 0..1, frame by frame."""
    return _similarity("structural_similarity_index_measure", frames, truth)


def ms_ssim(frames: Tensor, truth: Tensor) -> Measured:
    """Multi-scale structural similarity (Z. Wang et al., 2003). Raises ``Unavailable`` where the pictures are too small
    for its five scales."""
    if min(frames.shape[-2:]) < MS_SSIM_SIDE:
        raise Unavailable(
            f"pictures of {frames.shape[-2]}x{frames.shape[-1]} found, MS-SSIM's five scales need at least "
            f"{MS_SSIM_SIDE} pixels a side"
        )
    return _similarity("multiscale_structural_similarity_index_measure", frames, truth)


def _similarity(name: str, frames: Tensor, truth: Tensor) -> Measured:
    function = getattr(import_extra("torchmetrics.functional.image", "SSIM", "evaluate"), name)
    pairs = [(a[None], b[None]) for a, b in zip(_flat(frames), _flat(truth), strict=True)]
    values = torch.stack([function(a, b, data_range=1.0) for a, b in pairs])
    return sum_count_per_sample(values.view(frames.shape[:2]))


def lpips(network: "Lpips", frames: Tensor, truth: Tensor) -> Measured:
    """Learned perceptual distance of frames ``[B, n, 3, H, W]`` in 0..1, frame by frame."""
    values = [network(a[None], b[None]) for a, b in zip(_flat(frames), _flat(truth), strict=True)]
    return sum_count_per_sample(torch.cat(values).view(frames.shape[:2]))


def _flat(frames: Tensor) -> Tensor:
    return frames.float().clamp(0, 1).flatten(0, 1)


_Layer = tuple[int, int, int, int] | Literal["tap", "pool"]
_CONVOLUTIONS: dict[str, list[_Layer]] = {
    # (channels out, kernel, stride, padding), "pool" for max pooling, "tap" behind the ReLU whose output is compared.
    "alex": [
        (64, 11, 4, 2), "tap", "pool", (192, 5, 1, 2), "tap", "pool", (384, 3, 1, 1), "tap", (256, 3, 1, 1), "tap",
        (256, 3, 1, 1), "tap",
    ],
    "vgg": [
        (64, 3, 1, 1), (64, 3, 1, 1), "tap", "pool", (128, 3, 1, 1), (128, 3, 1, 1), "tap", "pool",
        *[(256, 3, 1, 1)] * 3, "tap", "pool", *[(512, 3, 1, 1)] * 3, "tap", "pool", *[(512, 3, 1, 1)] * 3, "tap",
    ],
}  # fmt: skip
_POOL = {"alex": 3, "vgg": 2}
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """LPIPS (R. Zhang et al., arXiv 1801.03924, version 0.1): squared differences of unit-length activations of a
    frozen classifier, weighed by channel.

    Args:
        backbone: torchvision's own file of AlexNet or VGG-16 (``alexnet-owt-7be5be79.pth``, ``vgg16-397923af.pth``);
            torchvision is not needed. The weights of the channels are in torchmetrics.

    Raises ``Unavailable`` where the file is missing or holds other weights.
    """

    def __init__(self, backbone: Path, kind: Literal["alex", "vgg"] = "alex") -> None:
        super().__init__()
        library = import_extra("torchmetrics.functional.image.lpips", "LPIPS", "evaluate")
        self.features = nn.Sequential()
        self._taps: list[int] = []
        channels, widths = 3, []
        for entry in _CONVOLUTIONS[kind]:
            if entry == "tap":
                self._taps.append(len(self.features) - 1)
                widths.append(channels)
            elif entry == "pool":
                self.features.append(nn.MaxPool2d(_POOL[kind], 2))
            else:
                self.features.append(nn.Conv2d(channels, entry[0], entry[1], entry[2], entry[3]))
                self.features.append(nn.ReLU())
                channels = entry[0]
        self.features.load_state_dict(_weights_of(backbone, self.features))
        heads = torch.load(
            Path(library.__file__).parent / "lpips_models" / f"{kind}.pth", map_location="cpu", weights_only=True
        )
        for index, width in enumerate(widths):
            self.register_buffer(f"head_{index}", heads[f"lin{index}.model.1.weight"].view(1, width, 1, 1))
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, pictures: Tensor, truth: Tensor) -> Tensor:
        """``[N, 3, H, W]`` in 0..1 -> ``[N]``."""
        total = pictures.new_zeros(len(pictures))
        for index, (a, b) in enumerate(zip(self._seen(pictures), self._seen(truth), strict=True)):
            weighed = (a - b).square() * self.get_buffer(f"head_{index}")
            total = total + weighed.sum(1).mean((1, 2))
        return total

    def _seen(self, pictures: Tensor) -> list[Tensor]:
        x = (2 * pictures - 1 - self.get_buffer("shift")) / self.get_buffer("scale")
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._taps:
                found.append(x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return found


def _weights_of(path: Path, features: nn.Module) -> dict[str, Tensor]:
    if not path.is_file():
        raise Unavailable(f"{path}: no such file, LPIPS needs torchvision's file of AlexNet or VGG-16")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers share no base but this
        raise Unavailable(f"{path}: not readable as weights ({error})") from error
    state = {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
    expected = {name: value.shape for name, value in features.state_dict().items()}
    found = {name: value.shape for name, value in state.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise Unavailable(
            f"{path}: weights features.{wrong[0]} missing or of another shape, LPIPS needs those of its kind"
        )
    return state
