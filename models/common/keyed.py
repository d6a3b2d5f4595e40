"""Random numbers that belong to a sample, not to a rank.

Each draw is keyed by ``(seed, stage, sample_uid, purpose)``; ``sample_uid`` is the sample's position in the endless
global order. So the noise of a sample does not depend on how samples are spread over ranks and micro-batches,
and a resumed run draws what the uninterrupted one would have drawn.
"""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def rng_keys(seed: int, stage: int, uids: Iterable[int]) -> Tensor:
    """int64 ``[B]`` on the CPU: what ``batch["rng_key"]`` holds for samples ``uids``."""
    return torch.tensor([_hash(f"{seed}/{stage}/{uid}") for uid in uids], dtype=torch.int64)


def request_generators(seed: int, request: str, samples: Iterable[int]) -> list[torch.Generator]:
    """A generator on the CPU for each sample (0, 1, ...) that a request asks for, as pipelines take them: the noise
    depends on seed, request and sample, and on no batch, rank or device."""
    return [torch.Generator().manual_seed(_hash(f"{seed}/{request}/{sample}")) for sample in samples]


def keyed_randn(batch: dict, purpose: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal ``[B, *shape]`` on the device of ``batch["uid"]``; row b depends on its key and purpose only."""
    return _draw(torch.randn, batch, purpose, shape, dtype)


def keyed_rand(batch: dict, purpose: str, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform on [0, 1), else as ``keyed_randn``."""
    return _draw(torch.rand, batch, purpose, shape, dtype)


def keyed_dropout(x: Tensor, p: float, batch: dict, purpose: str, training: bool) -> Tensor:
    """Dropout of ``x`` ``[B, ...]`` whose mask is keyed, so that a recomputed forward drops the same entries."""
    if not training or p == 0.0:
        return x
    keep = keyed_rand(batch, purpose, x.shape[1:]) >= p
    return x * keep / (1.0 - p)


def keyed_drop(batch: dict, purpose: str, probability: float, training: bool, shape: Sequence[int] = ()) -> Tensor:
    """bool ``[B, *shape]``: where a condition is withheld, each with ``probability``; nowhere outside of training."""
    return (keyed_rand(batch, purpose, shape) < probability) & training


def withheld(batch: dict, names: Iterable[str], dropped: Tensor | None = None) -> dict:
    """The batch with zeros for the conditions ``names``, each ``[B, ...]``: of samples that are ``dropped`` (bool
    ``[B]``), of all by default."""
    kept = torch.zeros_like(batch["uid"], dtype=torch.bool) if dropped is None else ~dropped
    return batch | {name: batch[name] * kept.view(-1, *[1] * (batch[name].ndim - 1)) for name in names}


def draws_on(batch: dict, device: torch.device) -> dict:
    """What ``keyed_rand`` and the like need of ``batch``, to draw on ``device`` instead of the batch's own."""
    return {"uid": torch.empty(len(batch["uid"]), device=device), "rng_key": batch["rng_key"]}


def _draw(function, batch: dict, purpose: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    device = batch["uid"].device
    if device.type == "meta":
        return torch.empty((len(batch["uid"]), *shape), dtype=dtype, device=device)
    generator = torch.Generator(device)
    rows = []
    for key in batch["rng_key"].tolist():
        generator.manual_seed(_hash(f"{key}/{purpose}"))
        rows.append(function(tuple(shape), generator=generator, device=device, dtype=dtype))
    return torch.stack(rows)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
