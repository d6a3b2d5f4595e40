"""Host batches onto the device, one ahead of the step that uses them."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from stagecoach.models.common.keyed import rng_keys


def device_batches(
    source: Iterable[tuple[int, int, dict[str, Any]]], device: torch.device, seed: int, stage: int
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """``(step, micro, batch)`` with tensors on ``device`` and ``rng_key`` added.

    On an accelerator, copies run on a stream of their own from pinned memory while the step before computes.
    """
    if device.type == "cpu":
        for step, micro, batch in source:
            yield step, micro, with_keys(batch, seed, stage)
        return
    copies = torch.cuda.Stream(device)
    ahead = None
    for step, micro, batch in source:
        batch = with_keys(batch, seed, stage)
        with torch.cuda.stream(copies):
            moved = to_device(batch, device)
        if ahead is not None:
            yield _ready(ahead, copies, device)
        ahead = step, micro, moved
    if ahead is not None:
        yield _ready(ahead, copies, device)


def with_keys(batch: dict[str, Any], seed: int, stage: int) -> dict[str, Any]:
    return {**batch, "rng_key": rng_keys(seed, stage, batch["uid"].tolist())}


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Tensors of ``batch`` on ``device``, but for ``rng_key``, whose reader wants it on the CPU."""

    def move(name: str, value: Any) -> Any:
        if name == "rng_key" or not torch.is_tensor(value) or device.type == "cpu":
            return value
        return value.pin_memory().to(device, non_blocking=True)

    return {name: move(name, value) for name, value in batch.items()}


def _ready(item: tuple[int, int, dict[str, Any]], copies: Any, device: torch.device) -> tuple[int, int, dict[str, Any]]:
    current = torch.cuda.current_stream(device)
    current.wait_stream(copies)
    for value in item[2].values():
        if torch.is_tensor(value) and value.is_cuda:
            value.record_stream(current)
    return item
