"""Which items there are, in which split, in which part: the same for every worker and any number of them."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from stagecoach.data.building.jobs import BuildJob, RawError, RawItem
from stagecoach.data.building.options import BuildOptions
from stagecoach.data.files import sha256_json
from stagecoach.data.format.shards import KEY

VERSION = 2
SPLIT = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Part:
    """Neighbouring items of one split."""

    number: int
    split: str
    items: list[RawItem]

    @property
    def name(self) -> str:
        return f"part-{self.number:06d}"


@dataclass(frozen=True)
class Division:
    """``unusable`` are entries of the raw data that are no items. ``record`` is what two processes have to agree upon
    to work at the same build, as JSON; ``record_hash`` its sha256."""

    parts: list[Part]
    unusable: list[tuple[str, RawError]]
    record: dict[str, Any]
    record_hash: str


def divide(job: BuildJob, options: BuildOptions, record: dict[str, Any] | None = None) -> Division:
    """Read the item list of ``job`` and cut it. ``record``: that of another process, which need not be made again.

    Raises ``RawError`` where there is no item; ``ValueError`` for a key or a split that cannot be a name, for a key
    that occurs twice, and where the items are not those of ``record``.
    """
    items, unusable = job.items()
    _check_names(items)
    splits = assign_splits(items, options.holdout)
    listed = sha256_json([[item.key, splits[item.key]] for item in items])
    if record is None:
        record = json.loads(
            json.dumps(
                {
                    "version": VERSION,
                    "schema": {"name": job.schema.name, "version": job.schema.version},
                    "settings": job.settings(),
                    "items": len(items),
                    "items_sha256": listed,
                    "unusable": len(unusable),
                    "holdout": options.holdout,
                    "part_items": options.part_items or job.part_items,
                    "max_shard_bytes": options.max_shard_bytes,
                    "encoded_together": job.together,
                }
            )
        )
    elif record["items_sha256"] != listed:
        raise ValueError(
            f"the raw data changed while it was read: {len(items)} items found, expected the "
            f"{record['items']} of the worker before; start again when it is complete"
        )
    size = record["part_items"]
    parts: list[Part] = []
    for split in sorted(set(splits.values())):
        members = [item for item in items if splits[item.key] == split]
        parts += [
            Part(len(parts) + n, split, members[first : first + size])
            for n, first in enumerate(range(0, len(members), size))
        ]
    return Division(parts, unusable, record, sha256_json(record))


def assign_splits(items: list[RawItem], holdout: float) -> dict[str, str]:
    """Split by key: what the raw data says, else by a hash of the group or the key, so that an item stays where it is
    when others come. Where chance leaves ``val`` or ``train`` empty, the nearest group goes there; one group alone is
    trained on."""
    groups = {item.key: item.group or item.key for item in items}
    fractions = {groups[item.key]: _fraction(groups[item.key]) for item in items if item.split is None}
    drawn = {group: "val" if fraction < holdout else "train" for group, fraction in fractions.items()}
    found = {*drawn.values(), *(item.split for item in items)}
    if holdout and len(fractions) > 1:
        if "val" not in found:
            drawn[min(fractions, key=fractions.__getitem__)] = "val"
        if "train" not in found:
            drawn[max(fractions, key=fractions.__getitem__)] = "train"
    elif fractions and "train" not in found:
        drawn = dict.fromkeys(fractions, "train")
    return {item.key: item.split or drawn[groups[item.key]] for item in items}


def _fraction(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(f"holdout/{key}".encode()).digest()[:8], "big") / 2**64


def differences(there: Any, asked: Any, name: str = "") -> list[str]:
    """Where two records differ, in words."""
    if isinstance(there, dict) and isinstance(asked, dict):
        return [
            line
            for key in sorted({*there, *asked})
            for line in differences(there.get(key), asked.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if there == asked else [f"{name.removeprefix('settings.')} {there!r} (now {asked!r})"]


def _check_names(items: list[RawItem]) -> None:
    counts = Counter(item.key for item in items)
    for item in items:
        if not KEY.fullmatch(item.key):
            raise ValueError(
                f"sample key {item.key!r} is empty or has a dot, slash or blank in it; use letters, digits, '-' and '_'"
            )
        if counts[item.key] > 1:
            raise ValueError(f"sample key {item.key!r} is that of {counts[item.key]} items, expected each key once")
        if item.split is not None and not SPLIT.fullmatch(item.split):
            raise ValueError(f"item {item.key!r} is of split {item.split!r}, expected a name of letters and digits")
