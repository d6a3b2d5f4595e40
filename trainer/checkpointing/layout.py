"""Which rank holds which elements of which parameters. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MODEL, AVERAGED = "model", "ema"
MOMENTS = ("exp_avg", "exp_avg_sq")


class Fragment(NamedTuple):
    """``numel`` elements of a flattened parameter, from ``start`` on, lie in flat partition ``group`` from ``offset``
    on."""

    group: int
    offset: int
    start: int
    numel: int


@dataclass(frozen=True)
class Layout:
    """What the ranks hold of each of ``kinds``: the weights, Adam's moments and maybe an average, all alike."""

    kinds: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    """Of the trained parameters."""
    sizes: list[list[int]]
    """Elements of each rank's flat fp32 partitions."""
    fragments: list[dict[str, Fragment]]
    """Of each rank, by parameter."""

    @classmethod
    def loads(cls, values: dict[str, Any]) -> Layout:
        """From JSON."""
        return cls(
            tuple(values["kinds"]),
            {name: tuple(shape) for name, shape in values["shapes"].items()},
            values["sizes"],
            [{name: Fragment(*one) for name, one in own.items()} for own in values["fragments"]],
        )

    def in_order(self, rank: int) -> list[tuple[str, Fragment]]:
        """A rank's fragments as they lie in its partitions."""
        return sorted(self.fragments[rank].items(), key=lambda item: item[1])

    @property
    def bytes(self) -> int:
        """That the tensors of a checkpoint take."""
        return 4 * len(self.kinds) * sum(map(sum, self.sizes))


def places(kinds: Sequence[str], sizes: Sequence[int]) -> tuple[dict[str, list[tuple[int, int]]], int]:
    """Where copies of one rank's flat partitions lie in its shared memory, as byte offset and number of elements by
    kind, and how many bytes they take."""
    found: dict[str, list[tuple[int, int]]] = {}
    end = 0
    for kind in kinds:
        for size in sizes:
            found.setdefault(kind, []).append((end, size))
            end += -4 * size // 64 * -64
    return found, max(end, 1)
