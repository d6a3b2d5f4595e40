"""A safetensors file that is written piece by piece, without torch: its layout is known before its content."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BYTES = 4
"""Of an element: all are fp32."""
PIECE = 1 << 24
"""Bytes that are written at once."""


def plan_file(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """What precedes the tensors in a file of fp32 tensors of these shapes, and where in it each tensor begins.

    The format: 8 bytes with the header's length, the header in JSON, filled up with blanks to 8 bytes, the tensors
    without gaps (https://github.com/huggingface/safetensors#format); the library puts those of one dtype in the order
    of their names.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    begins, end = {}, 0
    for name in sorted(shapes):
        begins[name], end = end, end + BYTES * math.prod(shapes[name])
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [begins[name], end]}
    content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    content = content.ljust(-len(content) // 8 * -8)
    head = struct.pack("<Q", len(content)) + content
    return head, {name: len(head) + begin for name, begin in begins.items()}


class TensorFile:
    """A new safetensors file of fp32 tensors, to be closed. ``write`` fills it in any order; what is not written is
    zero."""

    def __init__(
        self, path: Path, shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str] | None = None
    ) -> None:
        head, self._begins = plan_file(shapes, metadata or {})
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            self._put(memoryview(head), 0)
        except BaseException:
            os.close(self._handle)
            raise

    def write(self, name: str, start: int, values: memoryview) -> None:
        """Write the bytes ``values`` of a flattened tensor, from its element ``start`` on."""
        self._put(values, self._begins[name] + BYTES * start)

    def _put(self, values: memoryview, at: int) -> None:
        done = 0
        while done < len(values):
            done += os.pwrite(self._handle, values[done : done + PIECE], at + done)

    def sync(self) -> None:
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)
