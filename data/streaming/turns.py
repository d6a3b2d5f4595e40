"""Whose turn it is, where several take turns in given proportions, as a function of the number of the turn.

Before anything is shuffled the turns are spread evenly, by halves: of the first ``m`` turns, ``round(m * left / all)``
go to the left half of those who take turns, the rest to the right one, and so on inside each half. So how often each
has had its turn by any moment has a closed form. Then the turns inside of each small block are shuffled, and counted
there: the k-th turn of each comes before its (k+1)-th, and access stays O(1).
"""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from math import lcm
from typing import cast

from stagecoach.data.streaming.order import permutation

BLOCK = 100
"""Turns that are shuffled among each other."""
KEPT = 16
"""Blocks that are kept at hand: their turns are asked for one after the other, by several threads."""


class Turns:
    """An endless sequence in which each ``which`` comes in proportion to ``shares[which]`` > 0, in a keyed order.

    ``per_epoch``: None, or what integer shares are divided by to give the turns of an epoch. Then each has had
    ``ceil(e * share / per_epoch)`` turns where the e-th epoch ends, and no shuffled block reaches over that.
    """

    def __init__(self, shares: Sequence[int | Fraction], seed: int, name: str, per_epoch: int | None = None) -> None:
        fractions = [Fraction(share) for share in shares]
        unit = lcm(*(share.denominator for share in fractions))
        self.shares = [int(share * unit) for share in fractions]
        self.seed, self.name, self.per_epoch = seed, name, per_epoch
        self._blocks: dict[int, list[tuple[int, int]]] = {}

    def locate(self, n: int) -> tuple[int, int]:
        """``(which, k)``: turn ``n`` is turn ``k`` of ``which``, both counted from 0."""
        if len(self.shares) == 1:
            return 0, n
        for first, block in self._blocks.items():
            if first <= n < first + len(block):
                return block[n - first]
        first, block = self._block(n)
        self._blocks = {**dict(list(self._blocks.items())[1 - KEPT :]), first: block}
        return block[n - first]

    def _block(self, n: int) -> tuple[int, list[tuple[int, int]]]:
        """The first turn of the block that holds turn ``n``, and its turns."""
        before, shares = self._epoch_of(n)
        begin = sum(before)
        first = (n - begin) // BLOCK * BLOCK
        last = first + BLOCK if self.per_epoch is None else min(first + BLOCK, sum(shares))
        ends = list(accumulate(shares, initial=0))
        even = [_evenly(ends, m) for m in range(first, last)]
        counts: dict[int, int] = {}
        for which, k in even:
            counts.setdefault(which, before[which] + k)
        shuffle, turns = permutation(last - first, self.seed, begin + first, self.name), []
        for offset in range(last - first):
            which = even[shuffle(offset)][0]
            turns.append((which, counts[which]))
            counts[which] += 1
        return begin + first, turns

    def _epoch_of(self, n: int) -> tuple[list[int], list[int]]:
        """The turns of each before the epoch of turn ``n``, and in it; without epochs none and the shares."""
        if self.per_epoch is None:
            return [0] * len(self.shares), self.shares
        # Rounding up adds less than one turn of each to what the shares give, so it is one of a few.
        whole = sum(self.shares)
        near = range(max(n - len(self.shares), 0) * self.per_epoch // whole, n * self.per_epoch // whole + 1)
        epoch = near[bisect_right(near, n, key=lambda e: sum(self._turns_before(e))) - 1]
        before = self._turns_before(epoch)
        return before, [after - was for was, after in zip(before, self._turns_before(epoch + 1), strict=True)]

    def _turns_before(self, epoch: int) -> list[int]:
        return [-(-epoch * share // cast(int, self.per_epoch)) for share in self.shares]


def _evenly(ends: Sequence[int], n: int) -> tuple[int, int]:
    """``(which, k)`` of turn ``n`` before anything is shuffled, where the shares add up to ``ends``."""
    low, high = 0, len(ends) - 1
    while high - low > 1:
        middle = (low + high) // 2
        left, whole = ends[middle] - ends[low], ends[high] - ends[low]
        before, after = (2 * n * left + whole) // (2 * whole), (2 * (n + 1) * left + whole) // (2 * whole)
        if after > before:
            n, high = before, middle
        else:
            n, low = n - before, middle
    return low, n
