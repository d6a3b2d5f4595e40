"""From the order to batches: which samples a rank takes at a step, read ahead by a few threads, in order.

Optimizer step ``s`` takes the global batch ``s`` of the plan; rank ``r`` of ``W`` takes the ``r``-th of W equal slices
of it, cut into micro-batches. The step number is all that a resumed run needs.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
import torch

from stagecoach.data.files import DamagedError
from stagecoach.data.format.schema import DTYPES, Field, SampleSchema, SchemaError
from stagecoach.data.streaming.dataset import Sample
from stagecoach.data.streaming.mixture import DatasetMixture
from stagecoach.data.streaming.plan import ATTEMPTS, SamplePlan
from stagecoach.data.streaming.read_ahead import read_ahead
from stagecoach.data.streaming.windows import Window, cut


@dataclass(frozen=True)
class Batching:
    """How a global batch is spread. ``micro_batch`` is an upper bound, of which ``accumulation`` and ``micro`` follow.

    Raises ``ValueError`` where the world size does not divide the global batch, naming the nearest that it divides.
    """

    global_batch: int
    micro_batch: int
    world_size: int

    def __post_init__(self) -> None:
        if min(self.global_batch, self.micro_batch, self.world_size) < 1:
            raise ValueError(
                f"global_batch {self.global_batch}, micro_batch {self.micro_batch} and world size "
                f"{self.world_size} must all be at least 1"
            )
        rest = self.global_batch % self.world_size
        if rest:
            below, above = self.global_batch - rest, self.global_batch - rest + self.world_size
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"global_batch is {self.global_batch}, expected a multiple of the world size "
                f"{self.world_size}; use {nearest}"
            )

    @property
    def local(self) -> int:
        """Samples of a rank per optimizer step."""
        return self.global_batch // self.world_size

    @property
    def accumulation(self) -> int:
        """Micro-steps per optimizer step: the fewest that keep to ``micro_batch`` and make equal micro-batches."""
        fewest = -(-self.local // self.micro_batch)
        return next(a for a in range(fewest, self.local + 1) if self.local % a == 0)

    @property
    def micro(self) -> int:
        """Samples of a rank per micro-step."""
        return self.local // self.accumulation


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read, and was replaced at position ``uid``."""

    uid: int
    index: int
    shard: str
    key: str
    reason: str


class Stream:
    """The micro-batches of one rank for optimizer steps ``start_step <= s < stop_step``.

    Iterating gives ``(step, micro_index, batch)`` with ``batch`` as ``collate`` makes it, besides ``uid`` (int64
    ``[b]``: positions in the endless order) and, where ``window`` gives a window for the step, ``window_start`` (int64
    ``[b]``: first frame of each). Each ``iter()`` starts over. At most ``workers * prefetch`` micro-batches are held
    ready or on their way; ``workers=0`` reads in the calling thread. The threads end when the iterator is exhausted,
    closed, dropped or raises.

    A sample that fails its checks is replaced by ``plan.instead``, which does not depend on who reads it; ``bad`` lists
    those that were replaced in the batches handed out so far. What else reading raises comes out in the turn of the
    batch that it spoils, with a note of step, position, shard and key. A batch that is not there ``timeout`` seconds
    after it was asked for raises ``StalledError``.
    """

    def __init__(
        self,
        samples: DatasetMixture,
        *,
        plan: SamplePlan,
        batching: Batching,
        rank: int,
        start_step: int,
        stop_step: int,
        workers: int = 2,
        prefetch: int = 2,
        timeout: float = 600.0,
        window: Callable[[int], Window | None] = lambda step: None,
    ) -> None:
        if plan.global_batch != batching.global_batch:
            raise ValueError(f"the plan is for global batches of {plan.global_batch}, expected {batching.global_batch}")
        if not 0 <= rank < batching.world_size:
            raise ValueError(f"rank is {rank}, expected one of {batching.world_size} counted from 0")
        self.samples, self.plan, self.batching, self.rank = samples, plan, batching, rank
        self.start_step, self.stop_step = start_step, stop_step
        self.workers, self.prefetch, self.timeout, self.window = workers, prefetch, timeout, window
        self.bad: list[BadSample] = []

    def slots(self, micro_index: int) -> range:
        """The slots in the global batch of one micro-batch of this rank."""
        first = self.rank * self.batching.local + micro_index * self.batching.micro
        return range(first, first + self.batching.micro)

    def __iter__(self) -> Generator[tuple[int, int, dict[str, Any]], None, None]:
        tasks = (
            (step, micro_index)
            for step in range(self.start_step, self.stop_step)
            for micro_index in range(self.batching.accumulation)
        )
        read = read_ahead(self._read, tasks, self.workers, self.prefetch, self.timeout)
        try:
            for step, micro_index, batch, bad in read:
                self.bad += bad
                yield step, micro_index, batch
        finally:
            read.close()

    def _read(self, task: tuple[int, int], stop: Event) -> tuple[int, int, dict[str, Any], list[BadSample]]:
        step, micro_index = task
        window, schema = self.window(step), self.samples.schema
        samples, starts, uids = [], [], []
        bad: list[BadSample] = []
        for slot in self.slots(micro_index):
            _give_up(stop)
            uid = step * self.batching.global_batch + slot
            sample = self._sample(step, slot, uid, bad)
            if window is not None:
                sample, start = cut(schema, sample, window, self.plan.seed, uid)
                starts.append(start)
            samples.append(sample)
            uids.append(uid)
        batch = {**collate(schema, samples), "uid": torch.tensor(uids, dtype=torch.int64)}
        if window is not None:
            batch["window_start"] = torch.tensor(starts, dtype=torch.int64)
        return step, micro_index, batch, bad

    def _sample(self, step: int, slot: int, uid: int, bad: list[BadSample]) -> Sample:
        """The sample of a slot, or the first of its substitutes that is whole."""
        index = first = self.plan.locate(step, slot)
        attempt = 0
        while True:
            try:
                return self.samples.read(index)
            except (DamagedError, SchemaError) as error:
                shard, key = self.samples.name(index)
                if all(index != other.index for other in bad):
                    bad.append(BadSample(uid, index, shard, key, str(error)))
                if attempt == ATTEMPTS:
                    shard, key = self.samples.name(first)
                    error.add_note(
                        f"read for step {step}, uid {uid}, in place of {key!r} of {shard}; {ATTEMPTS} "
                        f"others were bad too"
                    )
                    raise
                index = self.plan.instead(step, slot, attempt)
                attempt += 1
            except Exception as error:
                shard, key = self.samples.name(index)
                error.add_note(f"read for step {step}, uid {uid}: sample {key!r} of {shard}")
                raise


def fixed_batches(
    samples: DatasetMixture,
    indices: Sequence[int],
    micro: int,
    workers: int = 2,
    prefetch: int = 2,
    timeout: float = 600.0,
    window: Window | None = None,
    seed: int = 0,
) -> Generator[dict[str, Any], None, None]:
    """Batches of ``micro`` held-out samples in the order of ``indices``; the last may be smaller. ``uid`` is the index,
    so that what is drawn for a sample is the same in each validation. Threads are as in ``Stream``; a bad sample
    raises."""

    def read(part: Sequence[int], stop: Event) -> dict[str, Any]:
        found, starts = [], []
        for index in part:
            _give_up(stop)
            try:
                sample = samples.read(index)
            except Exception as error:
                shard, key = samples.name(index)
                error.add_note(f"read for validation: sample {key!r} of {shard}")
                raise
            if window is not None:
                sample, start = cut(samples.schema, sample, window, seed, index)
                starts.append(start)
            found.append(sample)
        batch = {**collate(samples.schema, found), "uid": torch.tensor(list(part), dtype=torch.int64)}
        return batch | ({"window_start": torch.tensor(starts, dtype=torch.int64)} if window is not None else {})

    parts = (indices[first : first + micro] for first in range(0, len(indices), micro))
    return read_ahead(read, parts, workers, prefetch, timeout)


def collate(schema: SampleSchema, samples: Sequence[Sample]) -> dict[str, Any]:
    """One CPU tensor ``[b, ...]`` per field that the samples have, and ``key``, their names.

    bf16 comes as ``torch.bfloat16``, images as uint8 ``[b, H, W, 3]``. A field with ``pad`` is filled with zeros behind
    its end, to the longest of the batch. Raises ``SchemaError`` naming two samples whose shapes differ elsewhere, or of
    which one lacks an optional field.
    """
    batch: dict[str, Any] = {"key": [sample.key for sample in samples]}
    for spec in schema.fields:
        having = [sample for sample in samples if spec.name in sample.arrays]
        if not having:
            continue
        if len(having) < len(samples):
            without = next(sample for sample in samples if spec.name not in sample.arrays)
            raise SchemaError(
                f"field {spec.name!r} is in {_where(having[0])} but not in {_where(without)}, expected "
                f"all samples of a batch alike; build them with the same settings"
            )
        batch[spec.name] = _stack(spec, samples)
    return batch


def _stack(spec: Field, samples: Sequence[Sample]) -> torch.Tensor:
    arrays = [sample.arrays[spec.name] for sample in samples]
    shape = list(arrays[0].shape)
    if spec.pad is not None:
        shape[spec.pad] = max(array.shape[spec.pad] for array in arrays)
    stored = DTYPES.get(spec.dtype, np.dtype("uint8"))
    out = np.zeros((len(arrays), *shape), stored) if spec.pad is not None else np.empty((len(arrays), *shape), stored)
    for number, (array, sample) in enumerate(zip(arrays, samples, strict=True)):
        size: list[int] = list(array.shape)
        target: list[Any] = [number, ...]
        if spec.pad is not None:
            target = [number, *(slice(None),) * spec.pad, slice(size[spec.pad]), ...]
            size[spec.pad] = shape[spec.pad]
        if size != shape:
            raise SchemaError(
                f"field {spec.name!r} has shape {list(array.shape)} in {_where(sample)} but {list(arrays[0].shape)} "
                f"in {_where(samples[0])}, expected samples of one size in a batch; build them at the same clip size"
            )
        out[tuple(target)] = array
    if spec.dtype == "bf16":
        return torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(out)


def _where(sample: Sample) -> str:
    return f"{sample.shard}: sample {sample.key!r}"


def _give_up(stop: Event) -> None:
    if stop.is_set():
        raise CancelledError("the stream was closed")
