"""How long this rank waits in collectives for others: of ranks in step the one that is waited for waits least."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from typing import Any

import torch.distributed as dist

_waited = 0.0


def record_collectives() -> None:
    """Make PyTorch keep what ``waited`` and the flight recorder need; before the process group is made."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000")  # its name before torch 2.9
    os.environ.setdefault("TORCH_NCCL_ENABLE_TIMING", "1")
    if not hasattr(dist.Work.wait, "__wrapped__"):
        setattr(dist.Work, "wait", _timed(dist.Work.wait))  # noqa: B010 (mypy takes no assignment to a method)


def waited(steps: int, seconds: float) -> float:
    """Seconds in collectives since the last call, in which ``steps`` steps took ``seconds``. With NCCL, where the host
    does not wait, estimated from the collectives that the flight recorder still holds; NaN where it has no times."""
    global _waited
    blocked, _waited = _waited, 0.0
    dump = getattr(sys.modules.get("torch._C._distributed_c10d"), "_dump_nccl_trace_json", None)
    if dist.get_backend() != "nccl" or dump is None:
        return blocked
    return share_in_collectives(json.loads(dump(True, False))) * seconds


def share_in_collectives(record: dict[str, Any]) -> float:
    """Part of the time that the newest finished collectives of a flight recorder took, NaN where it has no times."""
    entries = [entry for entry in record.get("entries", ()) if entry.get("duration_ms")]
    if len(entries) < 2:
        return float("nan")
    created = [entry["time_created_ns"] for entry in entries]
    span = (max(created) - min(created)) / 1e6
    return min(1.0, sum(entry["duration_ms"] for entry in entries) / span) if span > 0 else float("nan")


def _timed(wait: Any) -> Any:
    @functools.wraps(wait)
    def timed(self: Any, *arguments: Any, **options: Any) -> Any:
        global _waited
        began = time.perf_counter()
        try:
            return wait(self, *arguments, **options)
        finally:
            _waited += time.perf_counter() - began

    return timed
