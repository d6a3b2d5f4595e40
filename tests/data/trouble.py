"""A file system that gives no answer for a while."""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from stagecoach.data import local_files


class Trouble(AbstractContextManager):
    """While the block runs, reads of the files whose names end so fail with an error number: the ``first`` to the
    ``last`` of them, counted from 1. Nobody pauses between attempts. ``count``: reads so far."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, ending: str, number: int, first: int = 1, last: float = float("inf")
    ) -> None:
        self.ending, self.number, self.first, self.last = ending, number, first, last
        self.patch, self.count, self._real = monkeypatch, 0, os.pread

    def __enter__(self):
        self._context = self.patch.context()
        patch = self._context.__enter__()
        patch.setattr(local_files, "FIRST_DELAY", 0)
        patch.setattr(os, "pread", self._pread)
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def _pread(self, handle: int, size: int, offset: int) -> bytes:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).name.removesuffix(" (deleted)").endswith(self.ending):
            self.count += 1
            if self.first <= self.count <= self.last:
                raise OSError(self.number, os.strerror(self.number))
        return self._real(handle, size, offset)
