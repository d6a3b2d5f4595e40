"""Whose turn it is, where several take turns in given proportions, as a function of the number of the turn.

Before anything is shuffled the turns are spread evenly, by halves: of the first ``m`` turns, ``round(m * left / all)``
go to the left half of those who take turns, the rest to the right one, and so on inside each half. So how often each
has had its turn by any moment has a closed form. Then the turns inside of each small block are shuffled, and counted
there: the k-th turn of each comes before its (k+1)-th, and access stays O(1).
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from math import ceil, lcm

from stagecoach.data.streaming.order import permutation

BLOCK = 100
"""Turns that are shuffled among each other."""
KEPT = 4
"""Blocks that are kept at hand: their turns are asked for one after the other."""


class Turns:
    """An endless sequence in which each ``which`` comes in proportion to ``shares[which]`` > 0, in a keyed order.

    ``epoch``: length of an epoch in turns; no shuffled block reaches over the end of one. When one ends, each of n
    has had its due number of turns to within ``ceil(log2(n)) / 2``, exactly where that sum of shares is through.
    """

    def __init__(
        self, shares: Sequence[int | Fraction], seed: int, name: str, epoch: Fraction = Fraction(BLOCK)
    ) -> None:
        fractions = [Fraction(share) for share in shares]
        unit = lcm(*(share.denominator for share in fractions))
        self._ends = list(accumulate((int(share * unit) for share in fractions), initial=0))
        self.seed, self.name, self.epoch = seed, name, epoch
        self._blocks: dict[int, list[tuple[int, int]]] = {}

    def locate(self, n: int) -> tuple[int, int]:
        """``(which, k)``: turn ``n`` is turn ``k`` of ``which``, both counted from 0."""
        if len(self._ends) == 2:
            return 0, n
        epoch = n // self.epoch
        begin, end = ceil(epoch * self.epoch), ceil((epoch + 1) * self.epoch)
        first = n - (n - begin) % BLOCK
        block = self._blocks.get(first)
        if block is None:
            block = self._block(first, min(first + BLOCK, end))
            self._blocks = {**dict(list(self._blocks.items())[1 - KEPT :]), first: block}
        return block[n - first]

    def _block(self, first: int, last: int) -> list[tuple[int, int]]:
        """Turns ``first`` to ``last`` - 1."""
        even = [self._evenly(n) for n in range(first, last)]
        counts: dict[int, int] = {}
        for which, k in even:
            counts.setdefault(which, k)
        shuffle, turns = permutation(last - first, self.seed, first, self.name), []
        for offset in range(last - first):
            which = even[shuffle(offset)][0]
            turns.append((which, counts[which]))
            counts[which] += 1
        return turns

    def _evenly(self, n: int) -> tuple[int, int]:
        """``(which, k)`` of turn ``n`` before anything is shuffled."""
        low, high = 0, len(self._ends) - 1
        while high - low > 1:
            middle = (low + high) // 2
            left, whole = self._ends[middle] - self._ends[low], self._ends[high] - self._ends[low]
            before, after = (2 * n * left + whole) // (2 * whole), (2 * (n + 1) * left + whole) // (2 * whole)
            if after > before:
                n, high = before, middle
            else:
                n, low = n - before, middle
        return low, n
