"""Splits without a song or a subject on both sides."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.raw import RawDance

SplitBy = Literal["song-and-subject", "song", "subject", "clip"]
SPLIT_BY: dict[str, tuple[str, ...]] = {
    "song-and-subject": ("song", "subject"),
    "song": ("song",),
    "subject": ("subject",),
    "clip": (),
}


def assign_splits(dances: Sequence[RawDance], by: SplitBy, holdout: float) -> dict[str, str | None]:
    """Split by key. Dances that share what ``by`` names, directly or over others, form a group, which stays together.

    A group goes where the metadata puts one of its dances; the others go to ``val`` in the order of a hash of their
    names while they fit into ``holdout`` of all the dances (the smallest one fits always). Where no two dances share
    anything, those without a split get None: they are drawn one by one. Raises ``RawError`` for a group that
    the metadata tears apart, and where a single group leaves nothing to hold out.
    """
    groups = _groups(dances, SPLIT_BY[by])
    if all(len(group) == 1 for group in groups):
        return {dance.key: dance.split for dance in dances}
    splits: dict[str, str | None] = {}
    free = []
    for group in groups:
        given = {dance.split: dance for dance in group if dance.split}
        if len(given) > 1:
            one, other = given.values()
            raise RawError(
                f"{one.footage} is in {one.split} and {other.footage} in {other.split}, but they share a "
                f"{by.replace('-', ' ')} (maybe over other dances); mend dances.json or give --split-by"
            )
        if given:
            splits.update(dict.fromkeys((dance.key for dance in group), next(iter(given))))
        else:
            free.append(group)
    if len(groups) == 1 and free and holdout:
        raise RawError(
            f"all {len(dances)} dances are connected by shared {by.replace('-and-', 's and ')}s "
            f"({dances[0].footage} and the others), so that none can be held out unseen; give --split-by "
            f"song, subject or clip, or --holdout 0"
        )
    free.sort(key=_draw)
    # What the metadata holds out counts: holdout is a share of all the dances.
    room = holdout * len(dances) - sum(split == "val" for split in splits.values())
    smallest = min((len(group) for group in free), default=0)
    for group in free:
        held = 0 < len(group) <= room or (room > 0 and len(group) == smallest and "val" not in splits.values())
        room -= len(group) if held else 0
        splits.update(dict.fromkeys((dance.key for dance in group), "val" if held else "train"))
    return splits


def _groups(dances: Sequence[RawDance], shared: Sequence[str]) -> list[list[RawDance]]:
    """Connected components, in the order of their first dances (union-find over values)."""
    parent = list(range(len(dances)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    first: dict[tuple[str, str], int] = {}
    for k, dance in enumerate(dances):
        for what in shared:
            value = getattr(dance, what)
            if value is not None:
                other = root(first.setdefault((what, value), k))
                parent[max(other, root(k))] = min(other, root(k))
    groups: dict[int, list[RawDance]] = defaultdict(list)
    for k, dance in enumerate(dances):
        groups[root(k)].append(dance)
    return list(groups.values())


def _draw(group: list[RawDance]) -> str:
    return hashlib.sha256(f"holdout/{min(dance.key for dance in group)}".encode()).hexdigest()
