"""What a build may be told besides the family's own options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuildOptions:
    """``holdout`` is the part of the items that goes to ``val`` where the raw data does not say. ``part_items``
    replaces the job's number. ``workers`` processes are started by each process that builds."""

    holdout: float = 0.1
    skip_bad: bool = False
    replace: bool = False
    max_shard_bytes: int = 10**9
    part_items: int | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout {self.holdout} found, expected a part of the items from 0 to below 1")
        for name in ("max_shard_bytes", "part_items", "workers"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name.replace('_', ' ')} {number} found, expected at least 1")
