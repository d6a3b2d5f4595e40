"""From the order to batches: which samples a rank takes at a step, read ahead by a few threads, in order.

Optimizer step ``s`` takes the positions ``[s * G, (s + 1) * G)`` of the endless order; rank ``r`` of ``W`` takes the
``r``-th of W equal slices of them, cut into micro-batches. The step number is all that a resumed run needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from threading import Event
from typing import Any, TypeVar

import numpy as np
import torch

from data.dataset import Sample, ShardSet
from data.order import Order
from data.schema import DTYPES, Field, SampleSchema, SchemaError

Task = TypeVar("Task")
Result = TypeVar("Result")


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
            raise ValueError(f"global_batch {self.global_batch}, micro_batch {self.micro_batch} and world size "
                             f"{self.world_size} must all be at least 1")
        rest = self.global_batch % self.world_size
        if rest:
            below, above = self.global_batch - rest, self.global_batch - rest + self.world_size
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ValueError(f"global_batch is {self.global_batch}, expected a multiple of the world size "
                             f"{self.world_size}; use {nearest}")

    @property
    def local(self) -> int:
        """Samples of a rank per optimizer step."""
        return self.global_batch // self.world_size

    @property
    def accumulation(self) -> int:
        """Micro-steps per optimizer step: the fewest that keep to ``micro_batch`` and make equal parts."""
        fewest = -(-self.local // self.micro_batch)
        return next(a for a in range(fewest, self.local + 1) if self.local % a == 0)

    @property
    def micro(self) -> int:
        """Samples of a rank per micro-step."""
        return self.local // self.accumulation


class Stream:
    """The micro-batches of one rank for optimizer steps ``start_step <= s < stop_step``.

    Iterating gives ``(step, micro_index, batch)`` with ``batch`` as ``collate`` makes it, besides ``uid`` (int64
    ``[b]``: positions in the endless order). Each ``iter()`` starts over. At most ``workers * prefetch`` micro-batches
    are held ready or on their way; ``workers=0`` reads in the calling thread. The threads end when the iterator is
    exhausted, closed, dropped or raises. What reading raises (``DamagedError``, ``SchemaError``, ...) comes out at the
    place of the batch that it spoils, with a note of step, position, shard and key.
    """

    def __init__(self, shards: ShardSet, *, order: Order, batching: Batching, rank: int, start_step: int,
                 stop_step: int, workers: int = 2, prefetch: int = 2) -> None:
        if tuple(order.shard_sizes) != tuple(shards.shard_sizes):
            raise ValueError(f"the order is over {len(order)} samples in {len(order.shard_sizes)} shards, expected "
                             f"{len(shards)} in {len(shards.shard_sizes)}; make it from these shards' shard_sizes")
        if not 0 <= rank < batching.world_size:
            raise ValueError(f"rank is {rank}, expected one of {batching.world_size} counted from 0")
        self.shards, self.order, self.batching, self.rank = shards, order, batching, rank
        self.start_step, self.stop_step = start_step, stop_step
        self.workers, self.prefetch = workers, prefetch

    def positions(self, step: int, micro_index: int) -> range:
        """The positions in the endless order of one micro-batch of this rank."""
        first = step * self.batching.global_batch + self.rank * self.batching.local + micro_index * self.batching.micro
        return range(first, first + self.batching.micro)

    def __iter__(self) -> Generator[tuple[int, int, dict[str, Any]], None, None]:
        tasks = ((step, micro_index) for step in range(self.start_step, self.stop_step)
                 for micro_index in range(self.batching.accumulation))
        return _ahead(self._read, tasks, self.workers, self.prefetch)

    def _read(self, task: tuple[int, int], stop: Event) -> tuple[int, int, dict[str, Any]]:
        step, micro_index = task
        uids = self.positions(step, micro_index)
        indices = [self.order.locate(position)[1] for position in uids]
        return step, micro_index, _read_batch(self.shards, uids, indices, f"step {step}", stop)


def fixed_batches(shards: ShardSet, indices: Sequence[int], micro: int, workers: int = 2,
                  prefetch: int = 2) -> Generator[dict[str, Any], None, None]:
    """Batches of ``micro`` held-out samples in the order of ``indices``; the last may be smaller. ``uid`` is the index,
    so that what is drawn for a sample is the same in each validation. Threads and errors are as in ``Stream``."""
    parts = (indices[first:first + micro] for first in range(0, len(indices), micro))
    return _ahead(lambda part, stop: _read_batch(shards, part, part, "validation", stop), parts, workers, prefetch)


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
            raise SchemaError(f"field {spec.name!r} is in {_where(having[0])} but not in {_where(without)}, expected "
                              f"all samples of a batch alike; build them with the same settings")
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
        size, place = list(array.shape), [number, ...]
        if spec.pad is not None:
            place = [number, *(slice(None),) * spec.pad, slice(size[spec.pad]), ...]
            size[spec.pad] = shape[spec.pad]
        if size != shape:
            raise SchemaError(f"field {spec.name!r} has shape {list(array.shape)} in {_where(sample)} but "
                              f"{list(arrays[0].shape)} in {_where(samples[0])}, expected samples of one size in a "
                              f"batch; build them at the same clip size")
        out[tuple(place)] = array
    if spec.dtype == "bf16":
        return torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(out)


def _where(sample: Sample) -> str:
    return f"{sample.shard}: sample {sample.key!r}"


def _read_batch(shards: ShardSet, uids: Sequence[int], indices: Sequence[int], purpose: str,
                stop: Event) -> dict[str, Any]:
    samples = []
    for uid, index in zip(uids, indices, strict=True):
        if stop.is_set():
            raise CancelledError("the stream was closed")
        try:
            samples.append(shards.read(index))
        except Exception as error:
            shard, key = shards.name(index)
            error.add_note(f"read for {purpose}, uid {uid}: sample {key!r} of {shards.directory / shard}")
            raise
    return {**collate(shards.schema, samples), "uid": torch.tensor(list(uids), dtype=torch.int64)}


def _ahead(function: Callable[[Task, Event], Result], tasks: Iterable[Task], workers: int,
           prefetch: int) -> Generator[Result, None, None]:
    """``function(task, stop)`` of each task in order, computed ahead by ``workers`` threads. Nothing here waits on a
    full queue, so there is no thread to get stuck when the consumer goes away; ``stop`` is set when that happens."""
    stop, tasks = Event(), iter(tasks)
    if workers < 1:
        yield from (function(task, stop) for task in tasks)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="stream")
    waiting: deque[Future[Result]] = deque()

    def fill() -> None:
        for task in islice(tasks, workers * max(prefetch, 1) - len(waiting)):
            waiting.append(pool.submit(function, task, stop))

    try:
        fill()
        while waiting:
            result = waiting.popleft().result()
            fill()
            yield result
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
