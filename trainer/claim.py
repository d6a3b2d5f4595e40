"""The right of a run to write to its folder, and the error of one that has lost it."""

from dataclasses import dataclass

from stagecoach.data.locks import STALE, DirectoryLock, describe


class LostFolderError(ValueError):
    """Another run has taken the folder meanwhile."""


@dataclass(frozen=True)
class Claim:
    """The lock ``path`` in a run's folder, held with ``token``. Other processes than the holder may ask."""

    path: str
    token: str

    def check(self) -> None:
        """Raise ``LostFolderError`` where another run has taken the lock, as it may from one that is silent on another
        host. A file system that gives no answer takes nothing away."""
        owner = DirectoryLock(self.path, self.token).lost_to()
        if owner is None:
            return
        now = f"another run writes to this folder now ({describe(owner)})" if "host" in owner else "its lock is gone"
        raise LostFolderError(
            f"{self.folder}: {now}, expected this run to be the only one; its lock is taken from a run that gives no "
            f"sign of life for {STALE:g} s, so this one stops and leaves the folder as it is; go on with --resume auto "
            "when no other run is in it"
        )

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]
