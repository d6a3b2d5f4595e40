"""What a job's batch script must know to decide whether a job that broke off is started again.

The script names a folder that all nodes see in ``STAGECOACH_STATE``; without it nothing is written. Imports nothing
heavy.
"""

import os
import socket
import sys
from pathlib import Path

VARIABLE = "STAGECOACH_STATE"


def note_progress(what: str) -> None:
    """``what`` is safe on disk now. Called by rank 0."""
    _write("progress", what)


def note_error(sentence: str, rank: int) -> None:
    """This rank ends because of an error of its own, which would happen again."""
    _write("error", f"rank {rank} on {socket.gethostname()}: {sentence}")


def _write(name: str, text: str) -> None:
    folder = os.environ.get(VARIABLE)
    if not folder:
        return
    try:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    except OSError as error:  # a full disk has been named already, or will be
        print(f"warning: {error}", file=sys.stderr, flush=True)
