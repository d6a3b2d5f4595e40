"""Training of a tiny backbone, all weights, by plain flow matching: what a frozen base is, and random weights are not.

With a random backbone an adapter's best move is to shift what it is given, no matter what its conditions say; only one
that already denoises shows what they add.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BATCH, WARMUP = 16, 30


def new_model(kind: type, settings: dict[str, Any]) -> Any:
    """A diffusers model of random weights, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**settings)


def train_base(
    model: nn.Module, loss: Callable[[list[int], torch.Generator], Tensor], samples: int, steps: int, rate: float
) -> float:
    """AdamW under a warm-up and a cosine, on ``BATCH`` of the ``samples`` at a time, whose ``loss`` is called with
    their numbers. The mean loss of the last 50 steps."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    losses = []
    for step in range(steps):
        chosen = torch.randint(0, samples, (BATCH,), generator=generator).tolist()
        found = loss(chosen, generator)
        factor = min((step + 1) / WARMUP, 1.0) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate * factor
        optimizer.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(found.item())
    return sum(losses[-50:]) / len(losses[-50:])
