"""How frames follow each other, and whether a clip keeps its look."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.models.common.reduce import Measured, sum_count_per_sample
from stagecoach.models.metrics.metric import Metric, Unavailable

BRIGHTNESS = "of full brightness"
MOTION_ERROR = Metric("motion_error", BRIGHTNESS)
MOTION_AMOUNT = Metric("motion_amount", BRIGHTNESS, None)
MOTION_AMOUNT_TRUE = Metric("motion_amount_true", BRIGHTNESS, None)
METRICS = (
    MOTION_ERROR,
    MOTION_AMOUNT,
    MOTION_AMOUNT_TRUE,
    Metric("warp_error", BRIGHTNESS, needs="optical flow of the true video"),
    Metric("temporal_consistency", "cosine x 100", True, needs="CLIP's folder"),
    Metric("style_consistency", "cosine x 100", True, needs="CLIP's folder"),
)


def motion(frames: Tensor, truth: Tensor, low: float = 0.0, high: float = 1.0) -> dict[str, Measured]:
    """How frames ``[B, n, 3, H, W]`` in ``low..high`` change from one to the next, in fractions of full brightness:
    ``motion_error``, mean |change - true change|, and ``motion_amount`` and ``motion_amount_true``, mean |change|: a
    still picture has a small error where little moves, so read them together. Counts are 0 for one frame."""
    change, true = (x.float().clamp(low, high).diff(dim=1) / (high - low) for x in (frames, truth))
    values = {"motion_error": change - true, "motion_amount": change, "motion_amount_true": true}
    return {name: sum_count_per_sample(value.abs().mean((2, 3, 4))) for name, value in values.items()}


def warp_error(frames: Tensor, flow: Tensor, valid: Tensor | None = None) -> float:
    """Mean difference of colours of each frame and the next one taken back along the flow (W.-S. Lai et al.,
    arXiv 1808.00449, there squared and without a root).

    Args:
        frames: ``[F, 3, H, W]`` in 0..1.
        flow: ``[F - 1, 2, H, W]``: columns and rows by which each pixel of a frame moves until the next.
        valid: bool ``[F - 1, H, W]``, False where a pixel is hidden in the next frame; all where it is None.

    Raises ``Unavailable`` where no valid pixel stays inside the picture.
    """
    height, width = frames.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    at = torch.stack([columns, rows]).to(flow) + flow
    grid = (at / at.new_tensor([width, height])[:, None, None] * 2 - 1).movedim(1, -1)
    moved = F.grid_sample(frames[1:].to(grid), grid, padding_mode="border", align_corners=False)
    inside = (grid.abs() < 1).all(-1)
    inside = inside if valid is None else inside & valid.bool()
    if not inside.any():
        raise Unavailable("no pixel of the clip has a flow that stays inside the picture")
    return (moved - frames[:-1].to(grid)).abs().mean(1)[inside].mean().item()


def temporal_consistency(features: Tensor) -> float:
    """Mean cosine x 100 of the features ``[F, D]`` of neighbouring frames (CLIP consistency). A still picture has 100:
    read it with ``motion_amount``. Raises ``Unavailable`` for a single frame."""
    if len(features) < 2:
        raise Unavailable("one frame found, temporal consistency is that of neighbours")
    return 100 * F.cosine_similarity(features[1:].float(), features[:-1].float()).mean().item()


def style_consistency(features: Tensor, reference: Tensor) -> float:
    """Mean cosine x 100 of the features ``[F, D]`` of frames and that of the reference picture ``[D]``."""
    return 100 * F.cosine_similarity(features.float(), reference.float()[None]).mean().item()
