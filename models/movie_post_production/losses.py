"""Flow matching at FLUX's resolution-dependent timesteps, the in-box term and the prior of alpha, one fp32 number per
sample each; and the metrics of references, by the guide's names.

``movie_post_production.md`` section 2.2 of the method's notes. What is not inside a sample's boxes or not a valid
reference has no influence, NaN included; an empty mask gives 0.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecoach.data.movie_post_production.schema import FOREGROUND
from stagecoach.models.common.noise import FlowMatching, resolution_shift
from stagecoach.models.common.reduce import Measured, masked_mean, sum_count
from stagecoach.models.movie_post_production.config import FlowMatchingConfig

ALPHA_BY_DEPTH = (0.8, 0.5, 0.2)
"""What the prior expects of foreground, midground, background."""


def make_process(config: FlowMatchingConfig, tokens: int) -> FlowMatching:
    """Of pictures of so many tokens; levels are t in (0, 1], and so is what the network takes."""
    shift = resolution_shift(tokens) if config.shift == "resolution" else 1.0
    return FlowMatching(shift, config.t_sampling, timesteps=1.0)


def in_box_error(prediction: Tensor, target: Tensor, covered: Tensor) -> Tensor:
    """Mean squared error ``[B]`` of ``[B, C, h, w]`` over the latents that ``covered`` (bool ``[B, h, w]``) marks."""
    error = (prediction.float() - target.float()).square().mean(1)
    return masked_mean(error, covered)


def alpha_prior(alpha: Tensor, depth: Tensor, valid: Tensor, kind: str) -> Tensor:
    """``[B]`` of alpha, depth labels and validity, each ``[B, N]``. ``depth``: mean cross entropy to
    ``ALPHA_BY_DEPTH``, less its least value; ``mean``: squared distance of a picture's mean alpha from 0.5;
    ``none``: 0, with a gradient of 0."""
    if kind == "mean":
        has = valid.any(1)
        return torch.where(has, (masked_mean(alpha, valid) - 0.5).square(), 0.0)
    expected = alpha.new_tensor(ALPHA_BY_DEPTH)[depth.long().clamp_max(len(ALPHA_BY_DEPTH) - 1)]
    if kind == "none":
        return 0.0 * masked_mean(alpha, valid)
    entropy = F.binary_cross_entropy(alpha, expected, reduction="none")
    return masked_mean(entropy - F.binary_cross_entropy(expected, expected, reduction="none"), valid)


Metrics = dict[str, Measured]
BINS = 5
"""Equal bins of [0, 1] that a distribution is reported in."""


def distribution(name: str, values: Tensor, mask: Tensor) -> Metrics:
    """The share of ``values`` in each fifth of [0, 1], as ``name/0.0-0.2`` and so on."""
    bin_ = (values.detach().float() * BINS).floor().clamp(0, BINS - 1)
    return {f"{name}/{b / BINS:.1f}-{(b + 1) / BINS:.1f}": sum_count((bin_ == b).float(), mask) for b in range(BINS)}


@torch.no_grad()
def reference_metrics(prediction: Mapping[str, Tensor], valid: Tensor) -> Metrics:
    """``alpha_mean`` and ``alpha_fg_ratio`` (alpha >= 0.5) over valid references, the distribution of alpha."""
    alpha = prediction["alpha"]
    return {
        "alpha_mean": sum_count(alpha, valid),
        "alpha_fg_ratio": sum_count((alpha >= FOREGROUND).float(), valid),
        **distribution("alpha_distribution", alpha, valid),
    }
