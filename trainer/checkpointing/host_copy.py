"""A copy of what a rank holds, in host memory that its writer sees too."""

import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from stagecoach.trainer.checkpointing.layout import places

POPULATE_WRITE = getattr(mmap, "MADV_POPULATE_WRITE", 23)
"""Linux 5.14 on; Python names it from 3.14 on."""


class HostCopy:
    """Memory without a name: nothing of it stays when its processes have ended, and /dev/shm bounds it only where
    Python has no ``os.memfd_create``.

    It is got once, and page-locked for a GPU: both take long.

    Raises ``OSError`` where there is not so much, and ``ValueError`` where it cannot be page-locked.
    """

    def __init__(self, kinds: Sequence[str], sizes: Sequence[int], cuda: bool) -> None:
        where, self.size = places(kinds, sizes)
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("stagecoach-checkpoint", os.MFD_CLOEXEC)
        else:  # interpreters that were built for old systems
            self.descriptor = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(self.descriptor, 0, self.size)
            memory = mmap.mmap(self.descriptor, self.size)
            with suppress(OSError):  # on older kernels the first copy takes longer
                memory.madvise(POPULATE_WRITE)
            self._whole = torch.frombuffer(memory, dtype=torch.uint8)
            self.flats = {
                kind: [self._whole[at : at + 4 * numel].view(torch.float32) for at, numel in own]
                for kind, own in where.items()
            }
            self.locked = cuda and self._lock()
        except BaseException:
            os.close(self.descriptor)
            raise

    def take(self, flats: Mapping[str, Sequence[Tensor]]) -> None:
        """Copy all partitions; returns when they are there."""
        for kind, part in flats.items():
            for target, flat in zip(self.flats[kind], part, strict=True):
                target.copy_(flat, non_blocking=True)
        if self.locked:
            torch.cuda.current_stream().synchronize()

    def close(self) -> None:
        if self.locked:
            torch.cuda.cudart().cudaHostUnregister(self._whole.data_ptr())
        self.flats = {}
        del self._whole
        os.close(self.descriptor)

    def _lock(self) -> bool:
        code = int(torch.cuda.cudart().cudaHostRegister(self._whole.data_ptr(), self.size, 0))
        if code:
            raise ValueError(
                f"checkpoint.asynchronous needs {self.size:,} bytes of page-locked memory on this host, which CUDA "
                f"refuses (error {code}); raise the limit (ulimit -l), or set checkpoint.asynchronous to false"
            )
        return True
