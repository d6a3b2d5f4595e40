"""How long samples take and how much memory: of this machine, these settings and this number of steps."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stagecoach.models.metrics.metric import Metric

METRICS = (Metric("seconds_per_sample", "s"), Metric("frames_per_second", "1/s", True), Metric("peak_memory", "GiB"))


class Speed:
    """Times samples on ``device``: each between two synchronisations."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._samples: list[tuple[float, int]] = []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def sample(self, frames: int = 1) -> Iterator[None]:
        """Around the drawing of one sample of so many frames. The first one is slower (allocations, kernels that are
        chosen): draw one outside before. One that fails is not counted."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self._samples.append((time.perf_counter() - start, frames))

    def result(self) -> dict[str, list[float]]:
        """One number per sample of ``seconds_per_sample`` and ``frames_per_second``, and one ``peak_memory``: what
        tensors took on the GPU at once, on a CPU what the process ever held."""
        return {
            "seconds_per_sample": [seconds for seconds, _ in self._samples],
            "frames_per_second": [frames / seconds for seconds, frames in self._samples],
            "peak_memory": [self._peak() / 2**30],
        }

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _peak(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kibibytes on Linux
