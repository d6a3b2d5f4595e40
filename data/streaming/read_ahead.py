"""Work done ahead by a few threads, its results in order, with no way to hang."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

GRACE = 10.0
"""Seconds that threads get to end when nobody wants their results any more. One that is stuck in the operating system
(a dead network mount) is then left behind; it is a daemon and keeps no process alive."""


class StalledError(TimeoutError):
    """A result did not come in time."""


def read_ahead(
    function: Callable[[Task, Event], Result], tasks: Iterable[Task], workers: int, prefetch: int, timeout: float
) -> Generator[Result, None, None]:
    """``function(task, stop)`` of each task in order, computed ahead by ``workers`` threads, at most ``workers *
    prefetch`` at a time. ``stop`` is set when the consumer goes away. ``workers=0``: in the calling thread.

    What ``function`` raises comes out in the place of its result. Raises ``StalledError`` naming the task whose result
    is not there ``timeout`` seconds after it was asked for.
    """
    stop, tasks = Event(), iter(tasks)
    if workers < 1:
        yield from (function(task, stop) for task in tasks)
        return
    queue: SimpleQueue[tuple[Task, Future[Result]] | None] = SimpleQueue()
    waiting: deque[tuple[Task, Future[Result]]] = deque()
    threads = [
        Thread(target=_work, args=(function, queue, stop), name=f"stream-{i}", daemon=True) for i in range(workers)
    ]

    def fill() -> None:
        for task in islice(tasks, workers * max(prefetch, 1) - len(waiting)):
            waiting.append((task, Future()))
            queue.put(waiting[-1])

    try:
        for thread in threads:
            thread.start()
        fill()
        while waiting:
            task, future = waiting.popleft()
            try:
                result = future.result(timeout)
            except TimeoutError as error:
                if future.done():
                    raise
                raise StalledError(
                    f"no data for {task} within {timeout:g} s, expected it long before; look at the "
                    f"storage, which hangs, or raise stream.timeout"
                ) from error
            fill()
            yield result
    finally:
        stop.set()
        for _, future in waiting:
            future.cancel()
        for _ in threads:
            queue.put(None)
        end = time.monotonic() + GRACE
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))


def _work(function: Callable[[Task, Event], Result], queue: SimpleQueue, stop: Event) -> None:
    while (item := queue.get()) is not None:
        task, future = item
        if not future.set_running_or_notify_cancel():
            continue
        try:
            result = function(task, stop)
        except BaseException as error:
            future.set_exception(error)
            # The exception holds this frame; without this the frame would hold the future and the batch.
            del future, item
        else:
            future.set_result(result)
            # Else the thread would keep its last batch until it has the next.
            del future, item, result
