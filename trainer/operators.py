"""Builds of DeepSpeed's operators: one process at a time, under a lock that dies with its holder.

PyTorch's own lock is the existence of a file. A launch that is killed while it builds leaves the file, and every later
one waits for it without end or word. Here ``flock`` decides, and PyTorch's file is kept for processes that know no
other lock.

    python -m stagecoach.trainer.operators [NAME ...]

builds what training on this machine needs, before any job does.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch.utils.cpp_extension

from stagecoach.trainer.interrupt import signals_held
from stagecoach.trainer.waiting import waiting

log = logging.getLogger(__name__)

LOCK = "stagecoach.lock"
WAITED = 2.0
"""Seconds until a wait for another process's build is named."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class BuildLock:
    """Takes the place of ``torch.utils.file_baton.FileBaton``: who asks for it gets it, after those before."""

    def __init__(self, lock_file_path: str, *settings: object, **more: object) -> None:
        self.theirs = Path(lock_file_path)
        self.ours = self.theirs.with_name(LOCK)
        self._held = ExitStack()
        self._handle: int | None = None

    def try_acquire(self) -> bool:
        """True, when the lock is held. Whoever waited builds again, which takes ninja no time where nothing changed."""
        handle = os.open(self.ours, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with waiting(self._holder, after=WAITED):
                fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            os.close(handle)
            raise ValueError(
                f"{self.ours.parent}: the file system takes no locks ({error.strerror}), expected one for DeepSpeed's "
                "operators that does; set TORCH_EXTENSIONS_DIR to a folder of this node"
            ) from error
        self._handle = handle
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        if self.theirs.exists():
            log.warning("%s was left by a build that was killed, and is taken over", self.theirs)
        self.theirs.touch()
        # The compiler is a child of this process, and gets the signals that Slurm sends to all of a step.
        self._held.enter_context(signals_held())
        if not any(self.theirs.parent.glob("*.so")):
            self._held.enter_context(waiting(f"the build of the operator {self.theirs.parent.name}"))
        return True

    def wait(self) -> None:
        raise AssertionError("try_acquire always succeeds")

    def release(self) -> None:
        assert self._handle is not None
        self._held.close()
        self.theirs.unlink(missing_ok=True)
        os.close(self._handle)

    def _holder(self) -> str:
        try:
            who = self.ours.read_text() or "another process"
        except OSError:
            who = "another process"
        return f"the operator {self.theirs.parent.name} in {self.theirs.parent}, which {who} builds"


def guard_builds() -> None:
    """Let every operator of this process be built under a ``BuildLock``. Where the folder of extensions lies on a file
    system without locks, they go into one of this node."""
    torch.utils.cpp_extension.FileBaton = BuildLock  # type: ignore[misc,assignment]
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or torch.utils.cpp_extension.get_default_build_root())
    if not _takes_locks(folder):
        own = Path(tempfile.gettempdir()) / f"torch_extensions_{os.getuid()}"
        own.mkdir(mode=0o700, exist_ok=True)
        if own.is_symlink() or own.stat().st_uid != os.getuid():  # what is built there is run
            raise ValueError(f"{own}: belongs to another user, expected none or one's own; set TORCH_EXTENSIONS_DIR")
        log.warning("%s takes no locks or files; operators are built in %s instead", folder, own)
        os.environ["TORCH_EXTENSIONS_DIR"] = str(own)


def _takes_locks(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno not in _NO_LOCKS
    finally:
        os.close(handle)
    return True


def build(names: list[str]) -> None:
    """Build the operators ``names``, by default those that the recipes of this project use, and say which."""
    from deepspeed.accelerator import get_accelerator

    on_cpu = get_accelerator().device_name() == "cpu"
    for name in names or (["ShareMemCommBuilder", "FusedAdamBuilder"] if on_cpu else ["FusedAdamBuilder"]):
        builder = get_accelerator().create_op_builder(name)
        if builder is None or type(builder).__name__ == "NotImplementedBuilder":  # the latter on a CPU, for any name
            raise ValueError(f"{name}: DeepSpeed has no such operator here, expected a name such as FusedAdamBuilder")
        builder.load(verbose=False)
        print(f"{builder.name} is built", flush=True)


if __name__ == "__main__":
    from stagecoach.trainer.cli import run_main

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    guard_builds()
    run_main(lambda: build(sys.argv[1:]))
