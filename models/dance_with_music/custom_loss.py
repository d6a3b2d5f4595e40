"""A loss of your own beside the diffusion loss.

It is a function and a name::

    def keep_still(prediction, target, conditions):  # [B]
        return (prediction.diff(dim=1) - target.diff(dim=1)).square().flatten(1).mean(1)

    register_custom_loss("keep_still", keep_still)

and then ``losses: {custom: keep_still, custom_weight: 0.1}`` in a recipe, in a script that registers it before it calls
``trainer.run.main``. It is in every stage with a denoiser, logged as ``loss/custom`` and ``custom_loss``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

CustomLoss = Callable[[Tensor, Tensor, dict], Tensor]
"""``(prediction, target, conditions) -> [B]``: the denoiser's output and what it should be, fp32 ``[B, T, 4, h, w]``
each, and the conditions that it had (``conditions.Conditions``); one number per sample, fp32."""

CUSTOM_LOSSES: dict[str, CustomLoss] = {}


def register_custom_loss(name: str, loss: CustomLoss) -> None:
    """Make ``name`` a word for ``losses.custom``. Raises ``ValueError`` where it is taken."""
    if name in CUSTOM_LOSSES:
        raise ValueError(f"custom loss {name!r} exists already, expected a new name")
    CUSTOM_LOSSES[name] = loss


def custom_loss(name: str) -> CustomLoss:
    """Raises ``ValueError`` for an unknown one."""
    if name not in CUSTOM_LOSSES:
        raise ValueError(
            f"losses.custom is {name!r}, expected among {sorted(CUSTOM_LOSSES)}; register_custom_loss adds one"
        )
    return CUSTOM_LOSSES[name]
