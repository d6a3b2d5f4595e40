"""Reading shards by sample index: one positioned read per sample, checked, and decoded without a second copy."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from typing import Any

import numpy as np
from isal.isal_zlib import crc32

from stagecoach.data.files import MANIFEST, DamagedError
from stagecoach.data.format.decode import decode_sample, member_names
from stagecoach.data.format.schema import Field, SampleSchema, SchemaError
from stagecoach.data.format.shards import FORMAT, Manifest, ShardEntry, describe_schema, index_name, read_manifest
from stagecoach.data.stores.opening import open_storage
from stagecoach.data.stores.storage import Storage

HASHED_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Sample:
    """One decoded sample. ``arrays``: read-only views on the bytes read, in the dtypes of the file (bf16 as uint16)."""

    key: str
    shard: str
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


class ShardSet:
    """The samples of a split by index: shard after shard as the manifest lists them, each in the order of its tar.

    Open it with ``ShardSet.open``. ``shard_sizes`` holds samples per shard; ``statistics`` and ``fingerprint`` are the
    manifest's; ``sizes`` (int32 ``[N, D]``, -1 for a dimension that a sample lacks) holds each sample's size along
    ``schema.dims``, None where the shards were indexed without. Reading is safe from several threads.
    """

    def __init__(self, storage: Storage, schema: SampleSchema, manifest: Manifest, indices: list[_Index]) -> None:
        self.storage, self.schema, self.manifest = storage, schema, manifest
        self.shard_sizes = [entry["samples"] for entry in manifest.shards]
        self.statistics, self.fingerprint = manifest.statistics, manifest.fingerprint
        self._indices = indices
        self._ends = list(accumulate(self.shard_sizes))
        tables = [table for index in indices if (table := index.sizes(schema.dims)) is not None]
        self.sizes: np.ndarray | None = np.concatenate(tables) if len(tables) == len(indices) else None

    @classmethod
    def open(cls, location: str | os.PathLike[str] | Storage, schema: SampleSchema) -> ShardSet:
        """Check manifest, schema, and each shard's size and index; the tars' own hashes are left to ``check``.

        Raises ``DamagedError`` naming the first file that is missing or not as listed, ``SchemaError`` if the set was
        built for another schema or version.
        """
        storage = location if isinstance(location, Storage) else open_storage(location)
        manifest = read_manifest(storage)
        _check_schema(storage.describe(MANIFEST), manifest, schema)
        with ThreadPoolExecutor(16) as pool:  # waits for a network, not for the CPU
            indices = list(pool.map(lambda entry: _open_shard(storage, entry), manifest.shards))
        return cls(storage, schema, manifest, indices)

    def __len__(self) -> int:
        return self._ends[-1]

    def having(self, spec: Field) -> np.ndarray:
        """Which samples have a field, bool ``[N]``."""
        return np.concatenate([index.having(member_names(spec)) for index in self._indices])

    def name(self, index: int) -> tuple[str, str]:
        """``(shard, key)`` of a sample."""
        number, row = self._locate(index)
        return self.manifest.shards[number]["name"], self._indices[number].keys[row]

    def read(self, index: int) -> Sample:
        """Read, check and decode one sample. Fields that the schema does not know are passed over.

        Raises ``DamagedError`` if the bytes are not those that were written, ``SchemaError`` if the sample does not fit
        the schema, each naming tar and key; ``IndexError`` outside of ``range(len(self))``.
        """
        number, row = self._locate(index)
        entry = self.manifest.shards[number]
        key, extents = self._indices[number].sample(row)
        try:
            members = self._members(entry, key, extents)
        except DamagedError:
            # A copy on this node may be damaged where the original is whole.
            if not self.storage.forget(entry["name"], entry["bytes"], entry["sha256"]):
                raise
            members = self._members(entry, key, extents)
        where = f"{self.storage.describe(entry['name'])}: sample {key!r}"
        arrays, meta = decode_sample(self.schema, members, where, self.manifest.heads)
        return Sample(key, entry["name"], arrays, meta)

    def _members(self, entry: ShardEntry, key: str, extents: dict[str, tuple[int, int, int]]) -> dict[str, memoryview]:
        """All members of a sample in one read, each compared with its crc32."""
        first = min(offset for offset, _, _ in extents.values())
        last = max(offset + size for offset, size, _ in extents.values())
        try:
            data = memoryview(
                self.storage.read_range(entry["name"], first, last - first, entry["bytes"], entry["sha256"])
            )
        except DamagedError as error:
            raise DamagedError(f"sample {key!r}: {error}") from error
        members = {}
        for name, (offset, size, crc) in extents.items():
            members[name] = data[offset - first : offset - first + size]
            if crc32(members[name]) != crc:
                raise DamagedError(
                    f"{self.storage.describe(entry['name'])}: sample {key!r}: crc32 of {name!r} differs "
                    f"from the index; the tar was damaged after it was built, copy or build it again"
                )
        return members

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {self.storage.url}, which holds {len(self)}")
        number = bisect_right(self._ends, index)
        return number, index - self._ends[number] + self.shard_sizes[number]


def verify_shards(location: str | os.PathLike[str] | Storage, schema: SampleSchema, hashes: bool = True) -> list[str]:
    """All that is wrong with a set of shards, one sentence each; never raises for what it finds. ``hashes`` reads every
    tar to the end and compares it with its sha256; without it, only sizes and indices are looked at."""
    storage = location if isinstance(location, Storage) else open_storage(location)
    try:
        manifest = read_manifest(storage)
        _check_schema(storage.describe(MANIFEST), manifest, schema)
    except ValueError as error:
        return [str(error)]
    problems: list[str] = []
    seen: dict[str, str] = {}
    for entry in manifest.shards:
        where = storage.describe(entry["name"])
        try:
            keys = _open_shard(storage, entry).keys
            if hashes and _sha256(storage, entry) != entry["sha256"]:
                raise DamagedError(
                    f"{where}: content differs from the sha256 in the manifest; it was damaged or "
                    f"replaced, copy or build it again"
                )
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        problems += [
            f"{where}: sample {key!r} is also in {seen[key]}, expected each key once; rebuild the shards"
            for key in keys
            if key in seen
        ]
        seen.update(dict.fromkeys(keys, entry["name"]))
    return problems


def _sha256(storage: Storage, entry: ShardEntry) -> str:
    found = sha256()
    for offset in range(0, entry["bytes"], HASHED_AT_ONCE):
        found.update(storage.read_range(entry["name"], offset, min(HASHED_AT_ONCE, entry["bytes"] - offset)))
    return found.hexdigest()


class _Index:
    """Where the samples of one tar lie. Columns, since objects for each member would take ten times the memory."""

    def __init__(self, samples: list[dict[str, Any]], dims: list[str] | None, tar_bytes: int) -> None:
        """Raises ``ValueError`` for a sample without members and for members that do not lie in the tar."""
        self.keys = [sample["key"] for sample in samples]
        self._names = sorted({name for sample in samples for name in sample["members"]})
        codes = {name: code for code, name in enumerate(self._names)}
        rows = [(codes[name], *extent) for sample in samples for name, extent in sample["members"].items()]
        self._rows = np.array(rows, np.int64).reshape(-1, 4)  # code of the name, offset, size, crc32
        self._ends = np.cumsum([0, *(len(sample["members"]) for sample in samples)])
        empty = np.flatnonzero(np.diff(self._ends) == 0)
        if empty.size:
            raise ValueError(f"sample {self.keys[empty[0]]!r} has no members")
        offsets, sizes = self._rows[:, 1], self._rows[:, 2]
        outside = np.flatnonzero((offsets < 0) | (sizes < 0) | (offsets > tar_bytes) | (sizes > tar_bytes - offsets))
        if outside.size:
            row, key = self._rows[outside[0]], self.keys[bisect_right(self._ends, outside[0]) - 1]
            raise ValueError(
                f"{self._names[row[0]]!r} of sample {key!r} lies at byte {row[1]} with {row[2]} bytes, expected it "
                f"within the tar's {tar_bytes}"
            )
        self._dims = None if dims is None else list(dims)
        self._sizes = np.array(
            [[-1 if size is None else size for size in sample["sizes"]] for sample in samples]
            if dims is not None
            else [],
            np.int32,
        ).reshape(len(samples), -1)

    def sizes(self, dims: Sequence[str]) -> np.ndarray | None:
        """int32 ``[n, len(dims)]``."""
        if self._dims is None or not set(dims) <= set(self._dims):
            return None
        return self._sizes[:, [self._dims.index(dim) for dim in dims]]

    def having(self, names: Sequence[str]) -> np.ndarray:
        """Which samples have a member of one of these names, bool ``[n]``."""
        codes = [code for code, name in enumerate(self._names) if name in names]
        counts = np.concatenate([[0], np.cumsum(np.isin(self._rows[:, 0], codes))])
        return counts[self._ends[1:]] > counts[self._ends[:-1]]

    def sample(self, row: int) -> tuple[str, dict[str, tuple[int, int, int]]]:
        """Key, and ``(offset, size, crc32)`` by member name without the key."""
        rows = self._rows[self._ends[row] : self._ends[row + 1]].tolist()
        return self.keys[row], {self._names[code]: (offset, size, crc) for code, offset, size, crc in rows}


def _check_schema(where: str, manifest: Manifest, schema: SampleSchema) -> None:
    """Name and version must agree, and each field that the reader requires must have been built with that dtype and
    shape. What was built besides does no harm."""
    found, expected = manifest.schema, describe_schema(schema)
    if (found.get("name"), found.get("version")) != (schema.name, schema.version):
        raise SchemaError(
            f"{where}: shards of schema {found.get('name')!r} version {found.get('version')}, expected "
            f"{schema.name!r} version {schema.version}; rebuild them or give those of this family"
        )
    built = {field["name"]: field for field in found.get("fields", [])}
    for field in expected["fields"]:
        other = built.get(field["name"])
        if other is None and field["optional"]:
            continue
        if other is None or (other["dtype"], other["shape"]) != (field["dtype"], field["shape"]):
            was = f"built as {other['dtype']} {other['shape']}" if other else f"not among the built {sorted(built)}"
            raise SchemaError(
                f"{where}: field {field['name']!r} was {was}, expected {field['dtype']} "
                f"{field['shape']}; rebuild the shards for this model"
            )


def _open_shard(storage: Storage, entry: ShardEntry) -> _Index:
    """The index of a shard, after tar and index were found to be those of the manifest."""
    path, name = storage.describe(entry["name"]), index_name(entry["name"])
    idx = storage.describe(name)
    again = "make it again with build_shards.py repair"
    size = storage.size(entry["name"])
    if size is None:
        raise DamagedError(
            f"{path}: missing, expected {entry['bytes']} bytes as the manifest lists; copy or build it again"
        )
    if size != entry["bytes"]:
        raise DamagedError(
            f"{path}: {size} bytes, expected {entry['bytes']} as the manifest lists; it "
            f"was cut or replaced, copy or build it again"
        )
    try:
        content = storage.read(name)
    except DamagedError as error:
        raise DamagedError(f"{idx}: not readable, expected the index of {entry['name']} next to it; {again}") from error
    if sha256(content).hexdigest() != entry["idx_sha256"]:
        raise DamagedError(
            f"{idx}: content differs from the sha256 in the manifest; it was damaged or belongs to another tar, {again}"
        )
    try:
        index = json.loads(content)
        found = index["version"], index["tar"], index["bytes"], len(index["samples"])
        table = _Index(index["samples"], index.get("dims"), entry["bytes"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedError(f"{idx}: not an index ({type(error).__name__}: {error}); {again}") from error
    expected = FORMAT, entry["name"], entry["bytes"], entry["samples"]
    if found != expected:
        raise DamagedError(
            f"{idx}: version, tar, bytes and samples are {found}, expected {expected}; it belongs to "
            f"another tar, {again}"
        )
    return table
