"""How much memory this host can still give, and the control group that Slurm or a container has put us into."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that processes here may still get. Beyond them the kernel ends one of the group without an error that could
    be reported. What it can take back (files that were read) counts as available."""
    return min([psutil.virtual_memory().available, *_left_in_groups(root)])


def check_memory(needed: int, host: str) -> None:
    """Raise ``ValueError`` where the ranks of this ``host`` cannot get ``needed`` bytes to copy a checkpoint into."""
    found = available_bytes()
    if needed > found:
        raise ValueError(
            f"checkpoint.asynchronous needs {needed:,} bytes of memory on {host} to copy what its ranks hold, and "
            f"{found:,} can be had there; set it to false, or ask for more memory (Slurm: --mem)"
        )


def _left_in_groups(root: Path) -> Iterator[int]:
    """Of each control group with a limit, from that of this process up to the whole."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                yield from _left(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                top = root / "sys/fs/cgroup/memory"
                yield from _left(top, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _left(top: Path, path: str, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    own = top / path.strip("/")
    for group in (own, *own.parents):
        with suppress(OSError, ValueError):  # no limit ("max"), or a group of whose files a container sees nothing
            most = int((group / limit).read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            yield max(0, most - int((group / usage).read_text()) + int(statistics.get(reclaimable, 0)))
        if group == top:
            return
