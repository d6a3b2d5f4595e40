"""Reading shards by sample index: one positioned read per sample, checked, and decoded without a second copy."""

from __future__ import annotations

import json
import os
import zlib
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from data.decode import decode_sample
from data.files import MANIFEST, DamagedError, sha256_file
from data.schema import SampleSchema, SchemaError
from data.shards import FORMAT, Manifest, ShardEntry, describe_schema, index_path, read_manifest


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
    manifest's. Reading is safe from several threads; no file stays open between reads.
    """

    def __init__(self, directory: Path, schema: SampleSchema, manifest: Manifest, indices: list[_Index]) -> None:
        self.directory, self.schema, self.manifest = directory, schema, manifest
        self.shard_sizes = [entry["samples"] for entry in manifest.shards]
        self.statistics, self.fingerprint = manifest.statistics, manifest.fingerprint
        self._indices = indices
        self._ends = list(accumulate(self.shard_sizes))

    @classmethod
    def open(cls, directory: str | os.PathLike[str], schema: SampleSchema) -> ShardSet:
        """Check manifest, schema, and each shard's size and index; the tars' own hashes are left to ``verify``.

        Raises ``DamagedError`` naming the first file that is missing or not as listed, ``SchemaError`` if the set was
        built for another schema or version.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        _check_schema(directory / MANIFEST, manifest, schema)
        with ThreadPoolExecutor(8) as pool:  # waits for a network file system, not for the CPU
            indices = list(pool.map(lambda entry: _open_shard(directory, entry), manifest.shards))
        return cls(directory, schema, manifest, indices)

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, index: int) -> tuple[str, str]:
        """``(shard, key)`` of a sample."""
        number, place = self._place(index)
        return self.manifest.shards[number]["name"], self._indices[number].keys[place]

    def read(self, index: int) -> Sample:
        """Read, check and decode one sample. Fields that the schema does not know are passed over.

        Raises ``DamagedError`` if the bytes are not those that were written, ``SchemaError`` if the sample does not fit
        the schema, each naming tar and key; ``IndexError`` outside of ``range(len(self))``.
        """
        number, place = self._place(index)
        shard = self.manifest.shards[number]["name"]
        key, places = self._indices[number].sample(place)
        where = f"{self.directory / shard}: sample {key!r}"
        first = min(offset for offset, _, _ in places.values())
        last = max(offset + size for offset, size, _ in places.values())
        data = memoryview(_read_span(self.directory / shard, first, last - first, where))
        members = {}
        for name, (offset, size, crc) in places.items():
            members[name] = data[offset - first:offset - first + size]
            if zlib.crc32(members[name]) != crc:
                raise DamagedError(f"{where}: crc32 of {name!r} differs from the index; the tar was damaged after it "
                                   f"was built, copy or build it again")
        arrays, meta = decode_sample(self.schema, members, where)
        return Sample(key, shard, arrays, meta)

    def verify(self, hashes: bool = True) -> list[str]:
        """``verify_shards`` of this set, from the disk."""
        return verify_shards(self.directory, self.schema, hashes)

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {self.directory}, which holds {len(self)}")
        number = bisect_right(self._ends, index)
        return number, index - self._ends[number] + self.shard_sizes[number]


def verify_shards(directory: str | os.PathLike[str], schema: SampleSchema, hashes: bool = True) -> list[str]:
    """All that is wrong with a set of shards, one sentence each; never raises for what it finds. ``hashes`` reads every
    tar to the end and compares it with its sha256; without it, only sizes and indices are looked at."""
    directory = Path(directory)
    try:
        manifest = read_manifest(directory)
        _check_schema(directory / MANIFEST, manifest, schema)
    except ValueError as error:
        return [str(error)]
    problems, seen = [], {}
    for entry in manifest.shards:
        path = directory / entry["name"]
        try:
            keys = _open_shard(directory, entry).keys
            if hashes and sha256_file(path) != entry["sha256"]:
                raise DamagedError(f"{path}: content differs from the sha256 in the manifest; it was damaged or "
                                   f"replaced, copy or build it again")
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        problems += [f"{path}: sample {key!r} is also in {seen[key]}, expected each key once; rebuild the shards"
                     for key in keys if key in seen]
        seen.update(dict.fromkeys(keys, entry["name"]))
    return problems


class _Index:
    """Where the samples of one tar lie. Columns, since objects for each member would take ten times the memory."""

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self.keys = [sample["key"] for sample in samples]
        self._names = sorted({name for sample in samples for name in sample["members"]})
        codes = {name: code for code, name in enumerate(self._names)}
        rows = [(codes[name], *place) for sample in samples for name, place in sample["members"].items()]
        self._rows = np.array(rows, np.int64).reshape(-1, 4)  # code of the name, offset, size, crc32
        self._ends = np.cumsum([0, *(len(sample["members"]) for sample in samples)])

    def sample(self, place: int) -> tuple[str, dict[str, tuple[int, int, int]]]:
        """Key, and ``(offset, size, crc32)`` by member name without the key."""
        rows = self._rows[self._ends[place]:self._ends[place + 1]].tolist()
        return self.keys[place], {self._names[code]: (offset, size, crc) for code, offset, size, crc in rows}


def _check_schema(path: Path, manifest: Manifest, schema: SampleSchema) -> None:
    """Name and version must agree, and each field that the reader requires must have been built with that dtype and
    shape. What was built besides does no harm."""
    found, expected = manifest.schema, describe_schema(schema)
    if (found.get("name"), found.get("version")) != (schema.name, schema.version):
        raise SchemaError(f"{path}: shards of schema {found.get('name')!r} version {found.get('version')}, expected "
                          f"{schema.name!r} version {schema.version}; rebuild them or give those of this family")
    built = {field["name"]: field for field in found.get("fields", [])}
    for field in expected["fields"]:
        other = built.get(field["name"])
        if other is None and field["optional"]:
            continue
        if other is None or (other["dtype"], other["shape"]) != (field["dtype"], field["shape"]):
            was = f"built as {other['dtype']} {other['shape']}" if other else f"not among the built {sorted(built)}"
            raise SchemaError(f"{path}: field {field['name']!r} was {was}, expected {field['dtype']} {field['shape']}; "
                              f"rebuild the shards for this model")


def _open_shard(directory: Path, entry: ShardEntry) -> _Index:
    """The index of a shard, after tar and index were found to be those of the manifest."""
    path = directory / entry["name"]
    idx = index_path(path)
    again = "make it again with build_shards.py index"
    if not path.is_file():
        raise DamagedError(f"{path}: missing, expected {entry['bytes']} bytes as the manifest lists; copy or build it "
                           f"again")
    if path.stat().st_size != entry["bytes"]:
        raise DamagedError(f"{path}: {path.stat().st_size} bytes, expected {entry['bytes']} as the manifest lists; it "
                           f"was cut or replaced, copy or build it again")
    try:
        content = idx.read_bytes()
    except OSError as error:
        raise DamagedError(f"{idx}: not readable ({error.strerror}), expected the index of {path.name} beside it; "
                           f"{again}") from error
    if sha256(content).hexdigest() != entry["idx_sha256"]:
        raise DamagedError(f"{idx}: content differs from the sha256 in the manifest; it was damaged or belongs to "
                           f"another tar, {again}")
    try:
        index = json.loads(content)
        found = index["version"], index["tar"], index["bytes"], len(index["samples"])
        table = _Index(index["samples"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{idx}: not an index ({type(error).__name__}: {error}); {again}") from error
    expected = FORMAT, entry["name"], entry["bytes"], entry["samples"]
    if found != expected:
        raise DamagedError(f"{idx}: version, tar, bytes and samples are {found}, expected {expected}; it belongs to "
                           f"another tar, {again}")
    return table


def _read_span(path: Path, offset: int, size: int, where: str) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(handle, size, offset)
            while 0 < len(data) < size:  # Linux reads at most 2 GiB at once
                more = os.pread(handle, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        finally:
            os.close(handle)
    except OSError as error:
        raise DamagedError(f"{where}: cannot be read ({error}); copy or build the tar again") from error
    if len(data) != size:
        raise DamagedError(f"{where}: {len(data)} of {size} bytes at offset {offset}; the tar was cut short, copy or "
                           f"build it again")
    return data
