# ruff: noqa: N802, N815 (names of nvidia-ml-py)
"""GPU, process and network numbers; NVML by a module object with the names of nvidia-ml-py."""

import math
import os
from types import SimpleNamespace

import pytest

from stagecoach.trainer.watch import sensors
from stagecoach.trainer.watch.record import SENSORS
from stagecoach.trainer.watch.sensors import NodeSensors


class NVMLError(Exception):
    pass


class FakeNvml:
    """As nvidia-ml-py 13 for one H100; ``lacks`` are functions that its driver does not support."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 0, 1, 1, 0
    nvmlEventTypeXidCriticalError, nvmlClocksThrottleReasonGpuIdle = 8, 1

    def __init__(self, lacks=(), xids=()):
        self.lacks, self.xids = lacks, list(xids)

    def _answer(self, name, value):
        if name in self.lacks:
            raise NVMLError("Not Supported")
        return value

    def nvmlInit(self):
        self._answer("nvmlInit", None)

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return self._answer("nvmlDeviceGetHandleByUUID", f"handle of {uuid}")

    def nvmlDeviceGetUtilizationRates(self, handle):
        assert handle == "handle of GPU-1"
        return self._answer("nvmlDeviceGetUtilizationRates", SimpleNamespace(gpu=97, memory=40))

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._answer("nvmlDeviceGetPowerUsage", 650_000)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self._answer("nvmlDeviceGetTemperature", 71)

    def nvmlDeviceGetClockInfo(self, handle, kind):
        assert kind == self.NVML_CLOCK_SM
        return self._answer("nvmlDeviceGetClockInfo", 1755)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return self._answer("nvmlDeviceGetCurrentClocksEventReasons", 0x41)

    def nvmlDeviceGetTotalEccErrors(self, handle, kind, counter):
        assert (kind, counter) == (self.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, self.NVML_VOLATILE_ECC)
        return self._answer("nvmlDeviceGetTotalEccErrors", 3)

    def nvmlEventSetCreate(self):
        return "events"

    def nvmlDeviceRegisterEvents(self, handle, types, events):
        assert (types, events) == (self.nvmlEventTypeXidCriticalError, "events")
        self._answer("nvmlDeviceRegisterEvents", None)

    def nvmlEventSetWait_v2(self, events, milliseconds):
        if not self.xids:
            raise NVMLError("Timeout")
        return SimpleNamespace(eventType=self.nvmlEventTypeXidCriticalError, eventData=self.xids.pop(0))


def sample(nvml, gpu="GPU-1"):
    (row,) = NodeSensors([(os.getpid(), gpu)], nvml).sample()
    return dict(zip(SENSORS, row, strict=True))


def test_a_gpu_is_measured_by_nvml():
    values = sample(FakeNvml(xids=[13, 79]))
    found = {name: value for name, value in values.items() if name.startswith("gpu")}
    assert found == {
        "gpu_utilisation": 97.0,
        "gpu_power_watts": 650.0,
        "gpu_temperature_c": 71.0,
        "gpu_clock_mhz": 1755.0,
        "gpu_throttle_bits": 0x40,
        "gpu_ecc_errors": 3.0,
        "gpu_xid": 79.0,
    }


@pytest.mark.parametrize(
    ("lacks", "missing"),
    [
        ("nvmlDeviceGetTotalEccErrors", "gpu_ecc_errors"),
        ("nvmlDeviceGetPowerUsage", "gpu_power_watts"),
        ("nvmlDeviceGetCurrentClocksEventReasons", "gpu_throttle_bits"),
    ],
)
def test_what_a_card_does_not_have_is_missing_and_the_rest_is_there(lacks, missing):
    values = sample(FakeNvml(lacks=(lacks, "nvmlDeviceRegisterEvents")))
    gpu = {name: value for name, value in values.items() if name.startswith("gpu")}
    assert [name for name, value in gpu.items() if math.isnan(value)] == [missing]


@pytest.mark.parametrize("nvml", [FakeNvml(lacks=("nvmlInit",)), FakeNvml(lacks=("nvmlDeviceGetHandleByUUID",))])
def test_without_a_driver_the_rest_is_measured(nvml):
    values = sample(nvml)
    assert all(math.isnan(value) for name, value in values.items() if name.startswith("gpu"))
    assert 0.001 < values["rss_gib"] < 100
    assert values["cpu_percent"] >= 0
    assert 0 < values["host_memory_percent"] < 100


def test_what_infiniband_carries_is_counted_over_all_cards_and_directions_in_bytes(tmp_path, monkeypatch):
    """Its counters are in units of four bytes; that of a port that is down may not be readable."""
    clock = [100.0]
    monkeypatch.setattr(sensors, "INFINIBAND", tmp_path)
    monkeypatch.setattr(sensors, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    at = SENSORS.index("infiniband_mb_per_second")

    def count(card: str, port: int, **counters: int | str) -> None:
        folder = tmp_path / card / "ports" / str(port) / "counters"
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in counters.items():
            (folder / name).write_text(f"{value}\n")

    without = NodeSensors([(os.getpid(), None)])
    count("mlx5_0", 1, port_xmit_data=2**40, port_rcv_data=7, port_xmit_packets=0)
    count("mlx5_1", 2, port_xmit_data=0, port_rcv_data=0, port_rcv_errors=0)
    count("mlx5_2", 1, port_xmit_data="N/A", port_rcv_data="N/A")
    clock[0] = 101.0
    assert math.isnan(without.sample()[0][at])  # nothing to compare with yet
    node = NodeSensors([(os.getpid(), None), (os.getpid(), None)])
    count("mlx5_0", 1, port_xmit_data=2**40 + 500_000, port_rcv_data=250_007, port_xmit_packets=10**9)
    count("mlx5_1", 2, port_xmit_data=125_000, port_rcv_data=125_000, port_rcv_errors=10**9)
    clock[0] = 103.0
    assert [row[at] for row in node.sample()] == [2.0, 2.0]  # 1,000,000 units in two seconds
    clock[0] = 104.0
    assert [row[at] for row in node.sample()] == [0.0, 0.0]


def test_a_process_that_is_gone_has_no_numbers():
    (row,) = NodeSensors([(2**22 - 1, None)]).sample()
    assert math.isnan(dict(zip(SENSORS, row, strict=True))["rss_gib"])


def test_the_real_module_has_every_name_that_is_used():
    pynvml = pytest.importorskip("pynvml")
    used = [name for name in vars(FakeNvml) if name.lower().startswith("nvml")]
    assert len(used) > 15
    assert not [name for name in used if not hasattr(pynvml, name)]
