"""The global sample order as a function.

``Order.locate(position)`` says which sample stands at a position of the endless order, epoch after epoch. It is
computed from ``(seed, epoch, position)`` and nothing else: there is no shuffled table to build, store or resume, and
neither the world size nor the workers are known here (docs/architecture.md, idea 4).
"""

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from math import isqrt

ROUNDS = 16
"""Eight rounds mix a large set as well, but make some orders of six samples several times as frequent as others."""

MASK = (1 << 64) - 1


class Permutation:
    """A keyed permutation of ``range(size)``: a Feistel network over mixed digits, with cycle walking.

    ``x`` is written as ``left * b + right`` with ``left < a``, ``right < b`` and ``a * b`` just above ``size`` (the
    cycle-walking and generalised Feistel ciphers of Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA
    2002). Rounds add a keyed hash of one digit to the other, which can be undone, so they permute ``range(a * b)``.
    A result outside of ``range(size)`` is put through again until it falls inside, which stays a bijection; since
    ``a * b < size + a``, that happens about once in sqrt(size) calls.

    The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). It mixes; it keeps no secret.
    """

    __slots__ = ("a", "b", "keys", "size")

    def __init__(self, size: int, key: str) -> None:
        self.size = size
        self.a = isqrt(size - 1) + 1 if size > 1 else 1
        self.b = -(-size // self.a)
        numbers = struct.unpack(f"<{ROUNDS}Q", hashlib.shake_128(key.encode()).digest(8 * ROUNDS))
        self.keys = tuple(zip(numbers[::2], numbers[1::2], strict=True))

    def __call__(self, x: int) -> int:
        """The image of ``x``, both in ``range(size)``."""
        a, b, size = self.a, self.b, self.size
        while True:
            left, right = divmod(x, b)
            for first, second in self.keys:
                z = (right + first) & MASK
                z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
                z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
                left = (left + (z ^ (z >> 31))) % a
                z = (left + second) & MASK
                z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
                z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
                right = (right + (z ^ (z >> 31))) % b
            x = left * b + right
            if x < size:
                return x


@lru_cache(maxsize=1024)
def permutation(size: int, seed: int, epoch: int, purpose: str) -> Permutation:
    """The permutation of ``range(size)`` that seed, epoch and the name of its purpose stand for."""
    return Permutation(size, f"{seed}/{epoch}/{purpose}")


class Order:
    """The endless order of the samples of a set of shards.

    ``shard_sizes``: samples per shard, in the order in which sample indices count through them.
    ``active_shards = 0``: one permutation over all samples. ``active_shards = K``: shards are permuted, the permuted
    list is cut into windows of K shards, and samples are permuted inside each window; a run then reads from K shards
    at a time, for storage that wants locality. ``name`` sets the orders of several sets apart under one seed. Raises
    ``ValueError`` for no shard, an empty shard or a negative ``active_shards``.
    """

    def __init__(self, shard_sizes: Sequence[int], seed: int, active_shards: int = 0, name: str = "") -> None:
        self.shard_sizes = tuple(int(size) for size in shard_sizes)
        self.seed, self.active_shards, self.name = int(seed), int(active_shards), name
        if min(self.shard_sizes, default=0) < 1:
            raise ValueError(
                f"found {len(self.shard_sizes)} shards, {self.shard_sizes.count(0)} of them empty, "
                f"expected at least one shard and one sample in each; rebuild the shards"
            )
        if self.active_shards < 0:
            raise ValueError(
                f"active_shards is {active_shards}, expected 0 (one level) or the number of shards that are "
                f"open at a time"
            )
        self._starts = list(accumulate(self.shard_sizes, initial=0))
        self._permuted: dict[int, tuple[list[int], list[int]]] = {}

    def __len__(self) -> int:
        """Samples per epoch."""
        return self._starts[-1]

    def locate(self, position: int) -> tuple[int, int]:
        """``(epoch, sample index)`` at ``position`` >= 0 of the endless order. Each epoch holds each index once."""
        if position < 0:
            raise ValueError(f"position is {position}, expected a count from 0")
        epoch, offset = divmod(position, len(self))
        return epoch, self.at(epoch, offset)

    def at(self, epoch: int, offset: int) -> int:
        """The sample index at ``offset`` of an epoch, both in ``range(len(self))``."""
        if self.active_shards == 0:
            return permutation(len(self), self.seed, epoch, f"{self.name}samples")(offset)
        shards, ends = self._permuted_shards(epoch)
        number = bisect_right(ends, offset) // self.active_shards
        first = ends[number * self.active_shards - 1] if number else 0
        last = ends[min((number + 1) * self.active_shards, len(ends)) - 1]
        inside = permutation(last - first, self.seed, epoch, f"{self.name}window/{number}")
        offset = first + inside(offset - first)
        slot = bisect_right(ends, offset)
        return self._starts[shards[slot] + 1] - (ends[slot] - offset)

    def _permuted_shards(self, epoch: int) -> tuple[list[int], list[int]]:
        """The shards in the order of this epoch, and after each the number of samples so far. A table over shards, kept
        for two epochs because a global batch may straddle them; it follows from the seed and is no state."""
        found = self._permuted.get(epoch)
        if found is None:
            permute = permutation(len(self.shard_sizes), self.seed, epoch, f"{self.name}shards")
            shards = [permute(i) for i in range(len(self.shard_sizes))]
            found = shards, list(accumulate(self.shard_sizes[shard] for shard in shards))
            self._permuted = {**dict(list(self._permuted.items())[-1:]), epoch: found}
        return found
