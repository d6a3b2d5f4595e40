"""What a stage minimises."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stagecoach.models.family import Progress, StageSpec


def weighted_total(
    losses: Mapping[str, Tensor], spec: StageSpec, overrides: Mapping[str, float], progress: Progress
) -> Tensor:
    """fp32 ``[B]``: the losses of ``spec`` with their weights, those of the recipe (``overrides``) before the
    family's."""
    return torch.stack(
        [overrides.get(term.name, term.weight.at(progress)) * losses[term.name] for term in spec.losses]
    ).sum(0)
