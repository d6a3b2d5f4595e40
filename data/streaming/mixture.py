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
    """A folder or URL of shards with its splits, and its share of the samples where sets are mixed by weight.
    ``unknown_encoders``: it may be mixed with others although nobody says what encoded it."""

    path: str
    weight: float | None = None
    unknown_encoders: bool = False


def check_weights(sources: Sequence[Source], drop_last: bool) -> None:
    """Raises ``ValueError`` where some sources have a weight and others none, and for weights with ``drop_last``."""
    weighted = [source.weight is not None for source in sources]
    if any(weighted) and not all(weighted):
        raise ValueError("data gives a weight to some sets only, expected one for each or for none")
    if any(weighted) and len(weighted) > 1 and drop_last:
        raise ValueError(
            "stream.drop_last is true for data sets that are mixed by weight, which have no common epoch; expected "
            "false, or no weights"
        )


class DatasetMixture:
    """One split of one or more data sets. Sample indices count through the sets in their order.

    ``fingerprint`` names the whole; ``statistics`` are the sums and counts of the manifests, added.
    """

    def __init__(self, sets: Sequence[ShardSet], weights: Sequence[float] | None = None) -> None:
        self.sets, self.weights = tuple(sets), None if weights is None else tuple(weights)
        self.schema = self.sets[0].schema
        self.unknown_encoders: tuple[bool, ...] = (False,) * len(self.sets)
        self._ends = list(accumulate(len(shards) for shards in self.sets))
        self.statistics: dict[str, Any] = _added([shards.statistics for shards in self.sets])

    @classmethod
    def open(
        cls, sources: Sequence[Source], split: str, schema: SampleSchema, cache: CacheOptions | None = None
    ) -> DatasetMixture:
        """The ``split`` of each source. Raises ``DamagedError`` and ``SchemaError`` as ``ShardSet.open`` does, and
        ``ValueError`` for the same shards twice; ``SchemaError`` for an optional field of a part of the samples."""
        sets = [ShardSet.open(open_storage(source.path, cache).child(split), schema) for source in sources]
        _refuse_twice(sets)
        _refuse_partial(sets, schema)
        weights = [source.weight for source in sources if source.weight is not None]
        mixture = cls(sets, weights if len(sets) > 1 and len(weights) == len(sets) else None)
        mixture.unknown_encoders = tuple(source.unknown_encoders for source in sources)
        return mixture

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

    def check_sizes(self, fixed: Mapping[str, int]) -> None:
        """Raise ``SchemaError`` naming the first sample whose length along a named dimension is another."""
        for shards in self.sets:
            check_sizes(shards, fixed)

    def check_encoders(self, expected: Mapping[str, Mapping[str, str]]) -> None:
        """Raise ``SchemaError`` where a set was not made by the encoders ``expected`` (by role, what their manifest
        entry must say: ``name``, ``dtype``, ``sha256`` or the beginning of it), two sets by different ones, or one by
        encoders that nobody names while another names its own (unless its source allows that)."""
        known = [shards.storage.url for shards in self.sets if shards.manifest.encoders]
        for shards, allowed in zip(self.sets, self.unknown_encoders, strict=True):
            if known and not allowed and not shards.manifest.encoders:
                raise SchemaError(
                    f"{shards.storage.url}: names no encoders, as shards of another's tool, expected those of "
                    f"{known[0]}; leave it out or give unknown_encoders: true next to its path in the recipe"
                )
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
                if entry.get("input") != other.get("input"):
                    raise SchemaError(
                        f"{shards.storage.url}: its {role} was given {_input(entry)}, expected {_input(other)} as "
                        f"{where}; build again what is older"
                    )

    def _locate(self, index: int) -> tuple[ShardSet, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a mixture of {len(self)}")
        number = bisect_right(self._ends, index)
        return self.sets[number], index - self._ends[number] + len(self.sets[number])


def check_inputs(shards: ShardSet, expected: Mapping[str, str | None]) -> None:
    """Raise ``SchemaError`` where an encoder that the manifest names was given something else than ``expected`` (by
    role; None: nothing special)."""
    for role, wanted in expected.items():
        entry = shards.manifest.encoders.get(role)
        if entry is not None and entry.get("input") != wanted:
            raise SchemaError(
                f"{shards.storage.url}: its {role} was given {_input(entry)}, expected {_input({'input': wanted})} as "
                "the model's settings say; give other shards, build these again, or change the settings"
            )


def _input(entry: Mapping[str, Any]) -> str:
    return entry.get("input") or "nothing that the manifest tells of"


def check_sizes(shards: ShardSet, fixed: Mapping[str, int]) -> None:
    """As ``DatasetMixture.check_sizes``, of one set; without sizes in its indices nothing is known."""
    if shards.sizes is None or not fixed:
        return
    found = shards.sizes[:, [shards.schema.dims.index(dim) for dim in fixed]]
    wrong = np.flatnonzero(((found != list(fixed.values())) & (found >= 0)).any(1))
    if wrong.size:
        names, sizes = ", ".join(fixed), ["x".join(map(str, row)) for row in (found[wrong[0]], fixed.values())]
        shard, key = shards.name(int(wrong[0]))
        raise SchemaError(
            f"{shards.storage.describe(shard)}: sample {key!r} is {sizes[0]} ({names}), expected {sizes[1]} as the "
            f"recipe says ({len(wrong):,} of {len(shards):,} samples differ); give that size in the "
            "recipe or build others"
        )


def _refuse_twice(sets: Sequence[ShardSet]) -> None:
    """Equal fingerprints are equal shards, however their place is spelled."""
    seen: dict[str, str] = {}
    for shards in sets:
        url = shards.storage.url
        other = seen.setdefault(shards.fingerprint, url)
        if other != url or sum(each.storage.url == url for each in sets) > 1:
            raise ValueError(
                f"{url}: the same shards as {other}, so that each sample would come twice, expected each data set "
                "once; leave one out, and give the other a weight if it shall come more often"
            )


def _refuse_partial(sets: Sequence[ShardSet], schema: SampleSchema) -> None:
    """A batch cannot hold a field of some of its samples: found here, not at the first batch that is mixed."""
    for spec in schema.fields:
        if not spec.optional:
            continue
        names: dict[bool, str] = {}
        count = 0
        for shards in sets:
            having = shards.having(spec)
            count += int(having.sum())
            for found in set(having.tolist()) - set(names):
                shard, key = shards.name(int(np.argmax(having == found)))
                names[found] = f"{shards.storage.describe(shard)}: sample {key!r}"
        if len(names) == 2:
            raise SchemaError(
                f"{names[False]} has no field {spec.name!r}, which {names[True]} has, as {count:,} of "
                f"{sum(map(len, sets)):,} samples, expected all or none of a run; build or index them with the same "
                "settings, or leave the field out of the tars"
            )


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
