"""Where log records go: the terminal and a run's ``train.log``. Only scripts call this; library code just logs.

Rank 0 shows and keeps all; other ranks only errors, since the rest they would repeat.
"""

import logging
import os
import socket
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

from stagecoach.trainer.redact import redact

TEXT = "train.log"
PROJECT = "stagecoach"
HELD = 2000
"""Lines kept in memory before the folder of the run is made."""


def process_rank() -> int:
    """Rank by the launchers' variables; those of Slurm count inside a job step only."""
    in_step = "SLURM_STEP_ID" in os.environ
    return int(os.environ.get("RANK") or (in_step and os.environ.get("SLURM_PROCID")) or 0)


def log_to_terminal() -> None:
    """Show progress on the standard output, warnings (Python's too) and errors on the standard error."""
    _install(Terminal(logging.INFO if process_rank() == 0 else logging.ERROR))
    logging.captureWarnings(process_rank() == 0)
    warned = logging.getLogger("py.warnings")
    if not any(isinstance(one, Once) for one in warned.filters):
        warned.addFilter(Once())


def log_to_run(run: str | Path) -> None:
    """Also append all records to ``train.log`` in the folder of a run, once it is there (``RunLog``)."""
    _install(RunLog(Path(run) / TEXT, logging.DEBUG if process_rank() == 0 else logging.ERROR))


class Once(logging.Filter):
    """Lets each text through once. Python would do so itself, but forgets what it has said wherever a library changes
    its filters for a while, as PyTorch does in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in self.said
        self.said.add(text)
        return new


class Terminal(logging.Handler):
    """Writes to the standard output and error as they are at the time: ``--json`` and the progress bar replace them."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.shown = level

    def filter(self, record: logging.LogRecord) -> bool:
        # A wait concerns the ranks of a node, of which the first speaks.
        speaks = getattr(record, "every_node", False) and os.environ.get("LOCAL_RANK") == "0"
        return (record.levelno >= self.shown or speaks) and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        text, rank = redact(self.format(record)), process_rank()
        where = f" on rank {rank}" if rank else ""
        try:
            if record.levelno < logging.WARNING:
                print(text, flush=True)
            else:
                print(f"{record.levelname.lower()}{where}: {text}", file=sys.stderr, flush=True)
        except OSError:  # whoever read the output is gone, which is no reason to stop a run
            self.handleError(record)


class RunLog(logging.Handler):
    """Appends to a file, each line with time, host and rank.

    It never makes the folder: a run that ends before its first file is written leaves nothing behind. Until the folder
    is there lines are held, the newest ``HELD`` of them. Ranks that do not see the folder of rank 0 keep theirs.
    """

    def __init__(self, path: Path, level: int) -> None:
        super().__init__(level)
        self.path, self.source = path, f"{socket.gethostname()} rank {process_rank()}"
        self.held: deque[str] = deque(maxlen=HELD)
        self.setFormatter(logging.Formatter(datefmt="%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        assert self.formatter is not None
        level = f"{record.levelname} " if record.levelno >= logging.WARNING else ""
        head = f"{self.formatter.formatTime(record, self.formatter.datefmt)} {self.source} {level}"
        self.held.extend(f"{head}{line}\n" for line in redact(self.format(record)).splitlines())
        with suppress(OSError):  # a full disk: the lines are held for the next one that can be written
            self._write()

    def close(self) -> None:
        with suppress(OSError):  # the process is leaving, and nobody reads it
            self._write()
        super().close()

    def _write(self) -> None:
        if self.held and self.path.parent.is_dir():
            with open(self.path, "a") as handle:
                handle.write("".join(self.held))
            self.held.clear()


def _install(handler: logging.Handler) -> None:
    """Put ``handler`` in the place of an earlier one of its kind."""
    root = logging.getLogger()
    for other in [one for one in root.handlers if type(one) is type(handler)]:
        root.removeHandler(other)
        other.close()
    root.addHandler(handler)
    logging.getLogger(PROJECT).setLevel(logging.DEBUG)
