"""What the watcher measures for each rank of its node: the GPU by NVML, the process and the network by psutil."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stagecoach.trainer.watch.record import MISSING

INFINIBAND = Path("/sys/class/infiniband")


class NodeSensors:
    """Samples of ``(pid, GPU's UUID or None)``, one per rank. ``nvml`` is the module pynvml (package nvidia-ml-py);
    where it is not installed, or there is no driver, its numbers are missing."""

    def __init__(self, ranks: Sequence[tuple[int, str | None]], nvml: Any = None) -> None:
        self.processes = [_process(pid) for pid, _ in ranks]
        self.gpus = [None if gpu is None else _gpu(gpu, nvml) for _, gpu in ranks]
        self.before = self._counters()
        self.at = time.monotonic()

    def sample(self) -> list[list[float]]:
        """The ``SENSORS`` of each rank."""
        import psutil

        counters, now = self._counters(), time.monotonic()
        seconds = max(now - self.at, 1e-3)
        rates = [(new - old) / 1e6 / seconds for new, old in zip(counters, self.before, strict=True)]
        self.before, self.at = counters, now
        node = [psutil.virtual_memory().percent, *rates]
        rows = []
        for process, gpu in zip(self.processes, self.gpus, strict=True):
            own = [MISSING, MISSING]
            try:
                if process is not None:
                    own = [process.cpu_percent(), process.memory_info().rss / 2**30]
            except psutil.Error:
                pass
            rows.append([*own, *node, *([MISSING] * 7 if gpu is None else gpu.sample())])
        return rows

    @staticmethod
    def _counters() -> list[float]:
        """Bytes sent, received, and both over InfiniBand, whose counters are in units of four bytes."""
        import psutil

        cards = psutil.net_io_counters(pernic=True)
        own = [card for name, card in cards.items() if name != "lo"]
        files = list(INFINIBAND.glob("*/ports/*/counters/port_*_data"))
        words = sum(_number(path) for path in files) if files else MISSING
        return [float(sum(card.bytes_sent for card in own)), float(sum(card.bytes_recv for card in own)), 4 * words]


class Gpu:
    """One GPU by NVML. A number that the card or the driver does not have is missing, once and for all."""

    def __init__(self, uuid: str, nvml: Any) -> None:
        self.nvml = nvml
        nvml.nvmlInit()
        self.handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        self.xid = 0.0
        self.events = self._try(self._register)
        # The newer name of what older drivers' modules call throttle reasons.
        newer = hasattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons")
        self.reasons: Callable[[Any], int] = getattr(
            nvml, f"nvmlDeviceGetCurrentClocks{'Event' if newer else 'Throttle'}Reasons"
        )
        self.idle = nvml.nvmlClocksThrottleReasonGpuIdle

    def sample(self) -> list[float]:
        nvml, handle = self.nvml, self.handle
        questions: list[Callable[[], float]] = [
            lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            lambda: self.reasons(handle) & ~self.idle,
            lambda: nvml.nvmlDeviceGetTotalEccErrors(
                handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            ),
        ]
        values = [self._try(question) for question in questions]
        self._read_events()
        return [MISSING if value is None else float(value) for value in values] + [self.xid]

    def _register(self) -> Any:
        events = self.nvml.nvmlEventSetCreate()
        self.nvml.nvmlDeviceRegisterEvents(self.handle, self.nvml.nvmlEventTypeXidCriticalError, events)
        return events

    def _read_events(self) -> None:
        while self.events is not None:
            event = self._try(lambda: self.nvml.nvmlEventSetWait_v2(self.events, 0))
            if event is None:  # none has come (NVML says so by a timeout)
                return
            self.xid = float(event.eventData)

    def _try(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self.nvml.NVMLError:
            return None


def _gpu(uuid: str, nvml: Any) -> Gpu | None:
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return None
    try:
        return Gpu(uuid, nvml)
    except nvml.NVMLError:
        return None


def _process(pid: int) -> Any:
    import psutil

    try:
        process = psutil.Process(pid)
        process.cpu_percent()  # the first call begins the interval of the next
    except psutil.Error:
        return None
    return process


def _number(path: Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 0.0
