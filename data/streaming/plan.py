"""Which sample stands where in the global batches: epochs, buckets of one shape, and data sets mixed by weight.

Everything is computed from the seed and a position, as in ``data/streaming/order.py``; nothing is drawn one after the
other, so the batch of step 1,000,000 costs what that of step 1 does. Where something must come in a given proportion
(buckets by their number of samples, data sets by weight), ``data/streaming/turns.py`` says whose turn it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from stagecoach.data.streaming.order import Order, permutation
from stagecoach.data.streaming.turns import Turns

Bucket = tuple[int, ...]
"""Sizes of the dimensions that all samples of a batch must agree in."""

TURNS_ORDER = 2
"""Raised whenever buckets or weighted sets get their turns in another order, from which no run of before may go on."""

ATTEMPTS = 16
"""Samples that are tried in place of a bad one before the run gives up."""


@dataclass(frozen=True)
class Members:
    """The samples of one data set in one bucket. ``shard_sizes``: how many each shard has (none empty); ``indices``:
    int64 ``[n]``, their index in the mixture, shard after shard."""

    shard_sizes: tuple[int, ...]
    indices: np.ndarray


class SamplePlan:
    """The endless sequence of global batches of ``global_batch`` samples of one bucket each.

    ``sets``: of each data set its members by bucket. ``weights``: the share of samples that each set gives, None where
    all together are one set, each sample of it once per epoch. ``active_shards``: see ``Order``.
    ``drop_last`` decides on the samples of a bucket that no whole batch is left for at the end of an epoch: False fills
    the batch with the first samples of the bucket's next epoch, so that nothing is left out; True leaves them out of
    this epoch (different ones in each), so that a batch never straddles two. The draws of each bucket, with weights of
    each bucket of each set, hold all its samples once before any comes again; without weights all buckets end an epoch
    together, each with the batch that holds its last sample.

    Raises ``ValueError`` for a bucket that is smaller than a batch under ``drop_last``, for weights that are not
    positive or not one per set, and for ``drop_last`` with weights (sets of unequal weight have no common epoch).
    """

    def __init__(
        self,
        sets: Sequence[Mapping[Bucket, Members]],
        *,
        global_batch: int,
        seed: int,
        weights: Sequence[float] | None = None,
        active_shards: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.global_batch, self.seed, self.drop_last = global_batch, seed, drop_last
        if weights is not None and (len(weights) != len(sets) or min(weights, default=0) <= 0):
            raise ValueError(f"weights {list(weights)} for {len(sets)} data sets, expected one above 0 for each")
        if weights is not None and drop_last:
            raise ValueError(
                "drop_last is true for data sets that are mixed by weight, which have no common epoch; "
                "leave out the weights or take drop_last: false"
            )
        pools = [dict(members) for members in sets] if weights is not None else [_joined(sets)]
        self.buckets: tuple[Bucket, ...] = tuple(sorted({bucket for pool in pools for bucket in pool}, key=str))
        if not self.buckets:
            raise ValueError("no sample is left to train on, expected at least one; see what was left out and why")
        several = len(self.buckets) > 1
        self._orders: list[list[Order]] = []
        self._indices: list[list[np.ndarray]] = []
        self._mix: list[Turns] = []
        shares = []
        for bucket in self.buckets:
            having = [number for number, pool in enumerate(pools) if bucket in pool]
            names = [f"set{number}/" * (weights is not None) + f"bucket{bucket}/" * several for number in having]
            self._orders.append(
                [
                    Order(pools[number][bucket].shard_sizes, seed, active_shards, name)
                    for number, name in zip(having, names, strict=True)
                ]
            )
            self._indices.append([pools[number][bucket].indices for number in having])
            groups = (
                [Fraction(1)]
                if weights is None
                else [
                    Fraction(str(weights[number])) * len(pools[number][bucket].indices) / _total(pools[number])
                    for number in having
                ]
            )
            self._mix.append(Turns(groups, seed, f"mix{bucket}"))
            shares.append(sum(groups, Fraction(0)))
        self.sizes = tuple(sum(len(order) for order in orders) for orders in self._orders)
        if weights is not None:
            self._steps = Turns(shares, seed, "buckets")
        elif drop_last:
            self._steps = Turns(self._whole_batches(), seed, "buckets", per_epoch=1)
        else:
            self._steps = Turns(self.sizes, seed, "buckets", per_epoch=global_batch)

    def _whole_batches(self) -> list[int]:
        """Batches of each bucket in an epoch under ``drop_last``."""
        steps = [size // self.global_batch for size in self.sizes]
        for bucket, size, count in zip(self.buckets, self.sizes, steps, strict=True):
            if not count:
                raise ValueError(
                    f"bucket {bucket} has {size} samples, fewer than the global batch of "
                    f"{self.global_batch}, so that drop_last: true would never use them; take drop_last: false, "
                    f"a smaller batch, or leave that bucket out of the shards"
                )
        return steps

    @property
    def left_out(self) -> int:
        """Samples that an epoch leaves out under ``drop``."""
        return sum(size % self.global_batch for size in self.sizes) if self.drop_last else 0

    @property
    def order_version(self) -> int:
        """``TURNS_ORDER``, or 1 where nobody takes turns and the order has always been the same."""
        turns = len(self.buckets) > 1 or any(len(orders) > 1 for orders in self._orders)
        return TURNS_ORDER if turns else 1

    def bucket(self, step: int) -> Bucket:
        """What all samples of a step have in common."""
        return self.buckets[self._steps.locate(step)[0]]

    def locate(self, step: int, slot: int) -> int:
        """Index in the mixture of the sample at ``slot`` (0 to ``global_batch`` - 1) of a step's batch."""
        number, turn = self._steps.locate(step)
        cell, local = self._local(number, turn, slot)
        return int(self._indices[number][cell][local])

    def instead(self, step: int, slot: int, attempt: int) -> int:
        """The sample that is taken where the one of ``locate`` is bad: of the same set and bucket, and a function of
        the bad sample and ``attempt`` (0 to ``ATTEMPTS`` - 1) alone. It may be the bad one again."""
        number, turn = self._steps.locate(step)
        cell, local = self._local(number, turn, slot)
        indices = self._indices[number][cell]
        return int(indices[permutation(len(indices), self.seed, attempt, f"instead/{number}/{cell}")(local)])

    def _local(self, number: int, turn: int, slot: int) -> tuple[int, int]:
        """Cell of a bucket, and which of the cell's samples."""
        if self.drop_last:
            epoch, batch = divmod(turn, self.sizes[number] // self.global_batch)
            return 0, self._orders[number][0].at(epoch, batch * self.global_batch + slot)
        cell, position = self._mix[number].locate(turn * self.global_batch + slot)
        return cell, self._orders[number][cell].locate(position)[1]


def _joined(sets: Sequence[Mapping[Bucket, Members]]) -> dict[Bucket, Members]:
    """All sets as one."""
    joined: dict[Bucket, list[Members]] = {}
    for members in sets:
        for bucket, group in members.items():
            joined.setdefault(bucket, []).append(group)
    return {
        bucket: Members(
            tuple(size for group in groups for size in group.shard_sizes),
            np.concatenate([group.indices for group in groups]),
        )
        for bucket, groups in joined.items()
    }


def _total(pool: Mapping[Bucket, Members]) -> int:
    return sum(len(members.indices) for members in pool.values())
