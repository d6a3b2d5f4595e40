"""The same function for every shard, in several processes where that pays."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from stagecoach.data.progress import Track

Task = TypeVar("Task")
Result = TypeVar("Result")

WORTH = 2_000_000_000
"""Bytes below which starting processes, each with its imports, costs more than it saves: a core checks 340 (samples of
160 kB in eight fields) to 680 MB/s (of 1.8 MB in one), and most of that outside the interpreter's lock."""


def cpu_count() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def map_shards(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, jobs: int | None, size: int, title: str, track: Track
) -> list[Result]:
    """``function`` of each task, in the order of the tasks. ``function`` and all it takes and gives can be pickled.

    ``jobs``: processes, by default one per CPU; ``size``: bytes to be read in all. Processes rather than threads, since
    a third of the time of small samples, walking headers and decoding, is spent under the interpreter's lock. Raises
    ``ValueError`` where a process died, and what ``function`` raises.
    """
    jobs = min(jobs or cpu_count(), len(tasks))
    if jobs < 2 or size < WORTH:
        return list(track(map(function, tasks), title, len(tasks)))
    results: dict[int, Any] = {}
    try:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            for number, result in track(_completed(pool, function, tasks), title, len(tasks)):
                results[number] = result
    except BrokenProcessPool as error:
        raise ValueError(
            f"{title}: one of {jobs} processes was killed before it ended, expected none; memory may have "
            f"run out, try fewer --jobs"
        ) from error
    return [results[number] for number in range(len(tasks))]


def _completed(
    pool: ProcessPoolExecutor, function: Callable[[Task], Result], tasks: Sequence[Task]
) -> Iterator[tuple[int, Result]]:
    numbers = {pool.submit(function, task): number for number, task in enumerate(tasks)}
    try:
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)
