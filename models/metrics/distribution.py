"""Sets of pictures or clips against sets of true ones: distances of distributions of features.

Features come from files that the user gives: Inception for FID and KID (the TorchScript that NVIDIA publishes with
StyleGAN2-ADA), I3D for FVD (the TorchScript port that StyleGAN-V publishes; 400 numbers). Numbers depend on the file,
on how pictures were resized, on clip length, frame rate and n: state them with each.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.data.files import import_extra
from stagecoach.models.metrics.metric import Metric, Unavailable

METRICS = (
    Metric("fid", needs="a TorchScript file of Inception, n > 2048"),
    Metric("kid", needs="a TorchScript file of Inception"),
    Metric("fvd", needs="a TorchScript file of I3D, n > 400"),
)
HALVES = 10
FVD_FRAMES, FVD_SIZE = 16, 224


def frechet_distance(features: Tensor, truth: Tensor, force: bool = False) -> float:
    """Of features ``[N, D]`` and ``[M, D]``, taken as Gaussian (M. Heusel et al., arXiv 1706.08500). Raises
    ``Unavailable`` for fewer than D + 1 samples on either side, whose covariance is singular, unless forced."""
    least = min(len(features), len(truth))
    if features.shape[1:] != truth.shape[1:] or features.ndim != 2:
        raise ValueError(f"features {list(features.shape)} and {list(truth.shape)} found, expected [N, D] and [M, D]")
    if least < 2 or (least < features.shape[1] + 1 and not force):
        raise Unavailable(
            f"{least} samples of {features.shape[1]} features, a Fréchet distance needs at least one more sample than "
            "features; measure more, or force it and do not compare it"
        )
    (m1, c1), (m2, c2) = (_moments(x) for x in (features, truth))
    return gaussian_distance(m1, c1, m2, c2)


def gaussian_distance(mean: np.ndarray, cov: np.ndarray, mean_true: np.ndarray, cov_true: np.ndarray) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^1/2), the squared Fréchet distance of two Gaussians (D. Dowson, B. Landau,
    1982)."""
    linalg = import_extra("scipy.linalg", "Fréchet distances", "evaluate")
    with warnings.catch_warnings():
        # Of a singular product the root may be inexact; its trace, the only thing of it in use, is checked below.
        warnings.simplefilter("ignore")
        root = linalg.sqrtm(cov @ cov_true)
    trace = float(np.trace(root).real)
    if not np.isfinite(trace):
        raise Unavailable("the product of the covariances has no root; measure more samples")
    shift = mean - mean_true
    return max(float(shift @ shift + np.trace(cov) + np.trace(cov_true) - 2 * trace), 0.0)


def halves(features: Tensor, truth: Tensor, seed: int = 0, force: bool = False) -> list[float]:
    """Fréchet distances of ``HALVES`` random halves of each side: how far a number of that many samples goes from one
    draw to the next (a set has one number, and no interval over samples). Raises ``Unavailable`` as above."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(HALVES):
        a, b = (x[torch.from_numpy(random.permutation(len(x))[: len(x) // 2])] for x in (features, truth))
        found.append(frechet_distance(a, b, force=force))
    return found


def kernel_distance(features: Tensor, truth: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0) -> float:
    """KID (M. Binkowski et al., arXiv 1801.01401): the mean over random subsets of the unbiased squared maximum mean
    discrepancy, kernel (x y / D + 1)^3. It may be below 0. Raises ``Unavailable`` for fewer than two samples."""
    mmd = import_extra("torchmetrics.image.kid", "KID", "evaluate").poly_mmd
    size = min(size, len(features), len(truth))
    if size < 2:
        raise Unavailable(f"{size} samples found, KID needs at least two")
    random = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        parts = [x[torch.from_numpy(random.permutation(len(x))[:size])].double() for x in (features, truth)]
        found.append(mmd(parts[1], parts[0]).item())
    return float(np.mean(found))


class FeatureFile:
    """A TorchScript file that makes features. ``return_features``, ``resize`` and ``rescale`` are passed where its
    forward has arguments of these names, as the published files have: features instead of logits, and no change of
    pictures that are prepared already.

    Raises ``Unavailable`` where the file is missing or no TorchScript.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        if not path.is_file():
            raise Unavailable(f"{path}: no such file, expected a TorchScript file that makes features")
        try:
            self._module = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            raise Unavailable(f"{path}: not loadable as TorchScript ({str(error).strip().splitlines()[0]})") from error
        known = {argument.name for argument in self._module.forward.schema.arguments}
        options = {"return_features": True, "resize": False, "rescale": False}
        self._options: dict[str, Any] = {name: value for name, value in options.items() if name in known}
        self._path, self._device = path, device

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """``[N, ...]`` -> fp32 ``[N, D]`` on the CPU."""
        found = self._module(inputs.to(self._device), **self._options)
        if not isinstance(found, Tensor) or len(found) != len(inputs):
            raise Unavailable(f"{self._path}: no features of each of {len(inputs)} inputs, expected [N, D]")
        return found.float().flatten(1).cpu()


def picture_features(extractor: Callable[[Tensor], Tensor], pictures: Sequence[Tensor]) -> Tensor:
    """Of pictures ``[3, H, W]`` in 0..1, one by one, given as uint8 ``[1, 3, H, W]``: Inception's file resizes them
    itself."""
    return torch.cat([extractor((p.float().clamp(0, 1) * 255).round().to(torch.uint8)[None]) for p in pictures])


def clip_features(extractor: Callable[[Tensor], Tensor], clips: Sequence[Tensor]) -> Tensor:
    """Of the first ``FVD_FRAMES`` frames of clips ``[F, 3, H, W]`` in 0..1, squashed to ``FVD_SIZE``, as
    ``[1, 3, F, 224, 224]`` in -1..1. Raises ``Unavailable`` for a shorter clip."""
    found = []
    for clip in clips:
        if len(clip) < FVD_FRAMES:
            raise Unavailable(f"a clip of {len(clip)} frames found, FVD is of {FVD_FRAMES}")
        frames = F.interpolate(
            clip[:FVD_FRAMES].float(), (FVD_SIZE, FVD_SIZE), mode="bilinear", align_corners=False, antialias=True
        )
        found.append(extractor((2 * frames.clamp(0, 1) - 1).movedim(1, 0)[None]))
    return torch.cat(found)


def _moments(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    values = features.double().cpu().numpy()
    return values.mean(0), np.atleast_2d(np.cov(values, rowvar=False))
