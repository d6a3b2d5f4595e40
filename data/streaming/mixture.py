"""The data sets of a run as one: their samples by a common index, and by bucket."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import Any

import numpy as np

from stagecoach.data.files import MANIFEST, sha256_json
from stagecoach.data.format.schema import SampleSchema, SchemaError
from stagecoach.data.stores.opening import open_storage
from stagecoach.data.stores.storage import CacheOptions
from stagecoach.data.streaming.dataset import Sample, ShardSet
from stagecoach.data.streaming.plan import Bucket, Members


@dataclass(frozen=True)
class Source:
    """A folder or URL of shards with its splits, and its share of the samples where sets are mixed by weight."""

    path: str
    weight: float | None = None


class DatasetMixture:
    """One split of one or more data sets. Sample indices count through the sets in their order.

    ``fingerprint`` names the whole; ``statistics`` are the sums and counts of the manifests, added.
    """

    def __init__(self, sets: Sequence[ShardSet], weights: Sequence[float] | None = None) -> None:
        self.sets, self.weights = tuple(sets), None if weights is None else tuple(weights)
        self.schema = self.sets[0].schema
        self._ends = list(accumulate(len(shards) for shards in self.sets))
        self.statistics: dict[str, Any] = _added([shards.statistics for shards in self.sets])

    @classmethod
    def open(
        cls, sources: Sequence[Source], split: str, schema: SampleSchema, cache: CacheOptions | None = None
    ) -> DatasetMixture:
        """The ``split`` of each source. Raises ``DamagedError`` and ``SchemaError`` as ``ShardSet.open`` does."""
        sets = [ShardSet.open(open_storage(source.path, cache).child(split), schema) for source in sources]
        weights = [source.weight for source in sources if source.weight is not None]
        return cls(sets, weights if len(sets) > 1 and len(weights) == len(sets) else None)

    @classmethod
    def open_where_there(
        cls, sources: Sequence[Source], split: str, schema: SampleSchema, cache: CacheOptions | None = None
    ) -> DatasetMixture | None:
        """As ``open``, of the sources that have such a split; None where none has it."""
        having = [one for one in sources if open_storage(one.path, cache).child(split).exists(MANIFEST)]
        return cls.open(having, split, schema, cache) if having else None

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def fingerprint(self) -> str:
        if len(self.sets) == 1:
            return self.sets[0].fingerprint
        return sha256_json([[shards.fingerprint for shards in self.sets], self.weights])

    def name(self, index: int) -> tuple[str, str]:
        """``(shard with its location, key)`` of a sample."""
        shards, local = self._locate(index)
        shard, key = shards.name(local)
        return shards.storage.describe(shard), key

    def read(self, index: int) -> Sample:
        """As ``ShardSet.read``."""
        shards, local = self._locate(index)
        return shards.read(local)

    def bucket_dims(self, windows: bool) -> tuple[str, ...]:
        """What a bucket is named by: the schema's ``bucket_dims``, and the length of the clips where no windows are cut
        from them."""
        whole = () if windows or self.schema.window is None else (self.schema.window,)
        return self.schema.bucket_dims + whole

    def members(self, shortest: int | None = None) -> tuple[list[dict[Bucket, Members]], int]:
        """Of each set its samples by bucket, and how many are left out. ``shortest``: the length of clips that windows
        are cut from, shorter ones being left out; None where clips are taken whole."""
        found, first, short = [], 0, 0
        for shards in self.sets:
            members, count = _by_bucket(shards, self.bucket_dims(shortest is not None), first, shortest)
            found.append(members)
            first, short = first + len(shards), short + count
        return found, short

    def check_encoders(self, expected: Mapping[str, Mapping[str, str]]) -> None:
        """Raise ``SchemaError`` where a set was not made by the encoders ``expected`` (by role, what their manifest
        entry must say: ``name``, ``dtype``, ``sha256`` or the beginning of it), or two sets by different ones."""
        seen: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for shards in self.sets:
            found = shards.manifest.encoders
            for role, wanted in expected.items():
                for name, value in wanted.items():
                    have = str(found.get(role, {}).get(name, "none"))
                    if not have.startswith(value) if name == "sha256" else have != value:
                        raise SchemaError(
                            f"{shards.storage.url}: made by a {role} whose {name} is {have}, expected {value} as the "
                            "recipe's encoders say; give other shards or build these again"
                        )
            for role, entry in found.items():
                where, other = seen.setdefault(role, (shards.storage.url, entry))
                if entry.get("sha256") != other.get("sha256"):
                    raise SchemaError(
                        f"{shards.storage.url}: made by a {role} with sha256 {entry.get('sha256')}, expected "
                        f"{other.get('sha256')} as {where}; sets of one run must be made by the same"
                    )

    def _locate(self, index: int) -> tuple[ShardSet, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a mixture of {len(self)}")
        number = bisect_right(self._ends, index)
        return self.sets[number], index - self._ends[number] + len(self.sets[number])


def _by_bucket(
    shards: ShardSet, dims: Sequence[str], first: int, shortest: int | None
) -> tuple[dict[Bucket, Members], int]:
    schema, sizes = shards.schema, shards.sizes
    indices = np.arange(len(shards), dtype=np.int64)
    if sizes is None:
        if shortest is not None:
            raise SchemaError(
                f"{shards.storage.url}: its indices do not say how long its clips are, as windows need; "
                f"build or index them again"
            )
        return {(): Members(tuple(shards.shard_sizes), indices + first)}, 0
    kept = np.ones(len(shards), bool)
    if shortest is not None:
        kept = sizes[:, schema.dims.index(schema.window)] >= shortest
    columns = [schema.dims.index(dim) for dim in dims]
    kinds, kind = np.unique(sizes[:, columns], axis=0, return_inverse=True)
    shard = np.repeat(np.arange(len(shards.shard_sizes)), shards.shard_sizes)
    found = {}
    for number, values in enumerate(kinds.tolist()):
        chosen = indices[kept & (kind.reshape(-1) == number)]
        if len(chosen):
            counts = np.bincount(shard[chosen], minlength=len(shards.shard_sizes))
            found[tuple(values)] = Members(tuple(counts[counts > 0].tolist()), chosen + first)
    return found, int((~kept).sum())


def _added(sets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums and counts, number by number. Raises ``SchemaError`` where they are of unequal shape."""
    if len(sets) == 1:
        return sets[0]
    added = {}
    for name in sorted({name for shards in sets for name in shards}):
        columns = [np.asarray(shards[name], np.float64) for shards in sets if name in shards]
        shapes = {column.shape for column in columns}
        if len(shapes) > 1:
            raise SchemaError(
                f"statistic {name!r} has shapes {sorted(shapes)} in the data sets of one run, expected "
                f"one; build them with the same number of frames"
            )
        added[name] = reduce(np.add, columns).tolist()
    return added
