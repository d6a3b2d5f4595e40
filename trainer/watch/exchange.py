"""How the nodes' watchers talk: one small file each in the run folder, written in place, since opening a file asks even
NFS for its newest content, which a renamed one need not show for half a minute."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

FOLDER = "watch"


class NodeFile:
    """What a node's watcher says to the others: states of its ranks, an order (node 0), an order obeyed."""

    def __init__(self, run: Path, node: int, token: str) -> None:
        self.path, self.token = run / FOLDER / f"node_{node:04d}.json", token
        self.count, self.seen = -1, 0.0
        self.content: dict[str, Any] = {}

    def write(self, content: dict[str, Any]) -> bool:
        """Whether it could be written."""
        self.count += 1
        text = json.dumps({"token": self.token, "count": self.count, **content})
        try:
            self.path.parent.mkdir(exist_ok=True)  # the run folder itself comes with the run's first file
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
                os.pwrite(descriptor, line, 0)
                os.ftruncate(descriptor, len(line))
            finally:
                os.close(descriptor)
        except OSError:
            return False
        return True

    def read(self, now: float) -> None:
        """Take what is new; ``seen`` is when something last was."""
        try:
            text = self.path.read_text()
            content = json.loads(text[9:])
            if int(text[:8], 16) != zlib.crc32(text[9:].rstrip("\n").encode()) or content["token"] != self.token:
                return
        except (OSError, ValueError, KeyError, TypeError):  # not there yet, or in the middle of a write
            return
        if content["count"] != self.count:
            self.count, self.seen, self.content = content["count"], now, content
