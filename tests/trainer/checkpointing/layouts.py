"""How ZeRO cuts parameters into the flat partitions of its ranks."""

import math

from hypothesis import strategies as st

from stagecoach.trainer.checkpointing.layout import Fragment

Cut = list[tuple[list[int], dict[str, Fragment]]]
"""For each rank the sizes of its flat partitions and the fragments in them."""


def cut_flat(sizes: list[int], groups: list[int], ranks: int) -> Cut:
    """As ZeRO-1 and 2: the parameters of a group one after another, padded and cut into equal partitions."""
    layout: Cut = [([], {}) for _ in range(ranks)]
    for group in sorted(set(groups)):
        members = [i for i, one in enumerate(groups) if one == group]
        share = math.ceil(sum(sizes[i] for i in members) / ranks)
        for rank, (flats, fragments) in enumerate(layout):
            flats.append(share)
            at = 0
            for i in members:
                first, last = max(at, rank * share), min(at + sizes[i], (rank + 1) * share)
                if first < last:
                    fragments[f"p{i}"] = Fragment(len(flats) - 1, first - rank * share, first - at, last - first)
                at += sizes[i]
    return layout


def cut_each(sizes: list[int], groups: list[int], ranks: int) -> Cut:
    """As ZeRO-3: each parameter is padded and cut."""
    layout: Cut = [([], {}) for _ in range(ranks)]
    for group in sorted(set(groups)):
        for rank, (flats, fragments) in enumerate(layout):
            at = 0
            for i in [i for i, one in enumerate(groups) if one == group]:
                share = math.ceil(sizes[i] / ranks)
                numel = max(0, min(share, sizes[i] - rank * share))
                if numel:
                    fragments[f"p{i}"] = Fragment(len(flats), at, rank * share, numel)
                at += share
            flats.append(at)
    return layout


CUTS = st.sampled_from([cut_flat, cut_each])
