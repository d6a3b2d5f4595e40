"""Why a checkpoint cannot be written, in one sentence: a full disk, a quota, a folder that may not be written."""

import errno
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from stagecoach.data.local_files import UnreachableError
from stagecoach.trainer.checkpointing.store import CheckpointStore
from stagecoach.trainer.settings import OF_THE_MACHINE


class SaveError(ValueError):
    """A checkpoint cannot be written."""


def free_bytes(directory: Path) -> int | None:
    """What an ordinary user may still write below ``directory``, which need not exist yet; None where the file system
    does not say."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def check_space(directory: Path, needed: int) -> None:
    """Raise ``OSError`` where ``needed`` bytes will not fit."""
    free = free_bytes(directory)
    if free is not None and free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def explained(function: Callable, final: Path, needed: int, store: CheckpointStore) -> Callable:
    """``function``, whose failures to write are raised as ``SaveError`` about the checkpoint ``final``, or as
    ``UnreachableError`` where the file system has failed, so that the same command may succeed, or as
    ``LostFolderError`` where the folder is another run's now."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            if store.claim is not None:  # another run has removed what this one was writing
                store.claim.check()
            where = f": {error.filename}" if error.filename else ""
            reason = f"{final}: cannot be written ({error.strerror or error}{where})"
            if error.errno in OF_THE_MACHINE:
                raise UnreachableError(
                    f"{reason}; the file system has failed, expected it to answer; when it does again, the same "
                    "command with --resume auto goes on from the checkpoint before"
                ) from error
            free = free_bytes(final)
            steps = store.steps()
            raise SaveError(
                f"{reason}; it takes {needed:,} bytes, and "
                f"{'an unknown number' if free is None else f'{free:,}'} are free there; "
                + (f"the last good checkpoint is {store.path(steps[-1])}" if steps else "there is no checkpoint yet")
                + "; free space there or choose another `run`, then give the same command with --resume auto"
            ) from error

    return wrapper
