"""Host memory for a copy of what a rank holds."""

import errno
import os
from types import SimpleNamespace

import pytest
import torch

from stagecoach.trainer.checkpointing.host_copy import HostCopy

SIZES = [5, 0, 33]


def test_a_copy_keeps_what_was_there_in_fp32_and_leaves_no_descriptor():
    before = os.listdir("/proc/self/fd")
    copy = HostCopy(("model", "ema"), SIZES, cuda=False)
    flats = {kind: [torch.randn(size, dtype=torch.float64) for size in SIZES] for kind in ("model", "ema")}
    expected = {kind: [flat.float() for flat in part] for kind, part in flats.items()}
    copy.take(flats)
    for part in flats.values():
        for flat in part:
            flat.zero_()
    assert all(a.equal(b) for kind in flats for a, b in zip(copy.flats[kind], expected[kind], strict=True))
    assert all(flat.data_ptr() % 64 == 0 for part in copy.flats.values() for flat in part if flat.numel())
    copy.close()
    assert os.listdir("/proc/self/fd") == before


def test_missing_memory_is_named_before_it_is_used(monkeypatch):
    def none(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "posix_fallocate", none)
    with pytest.raises(OSError, match="No space left"):
        HostCopy(("model",), SIZES, cuda=False)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("code", [0, 2])
def test_the_whole_of_it_is_page_locked_once_and_let_go(monkeypatch, code):
    calls = []
    runtime = SimpleNamespace(
        cudaHostRegister=lambda *args: calls.append(("register", *args)) or code,
        cudaHostUnregister=lambda *args: calls.append(("unregister", *args)) or 0,
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    if code:
        with pytest.raises(ValueError, match=r"bytes of page-locked memory .* CUDA refuses \(error 2\)"):
            HostCopy(("model",), SIZES, cuda=True)
        return
    copy = HostCopy(("model",), SIZES, cuda=True)
    start = copy.flats["model"][0].data_ptr()
    copy.close()
    assert calls == [("register", start, copy.size, 0), ("unregister", start)]
