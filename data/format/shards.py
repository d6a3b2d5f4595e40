"""Shards on disk: plain WebDataset tars, a byte-offset index next to each, and a manifest that says what may be read.

A sample is a run of neighbouring members of a tar: ``<key>.json`` (schema name and version, true dtypes, meta), then
one ``<key>.<field>.npy`` or ``<key>.<field>.jpg`` per field. ``<name>.tar.idx`` is JSON: where each member's data
starts, how long it is, its crc32, and the sizes of the sample's named dimensions. ``manifest.json`` lists the shards
with the sha256 of tar and index.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import (
    Annotated,
    Any,
    BinaryIO,
    Required,  # pydantic takes the one of typing from Python 3.12 on
    cast,
)

import numpy as np
from isal.isal_zlib import crc32
from PIL import Image
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from stagecoach.data.files import MANIFEST, atomic_file, sha256_json, sync_directory, temporary_name, write_json
from stagecoach.data.format.schema import SampleSchema, SchemaError, check_sample, sample_sizes
from stagecoach.data.local_files import DamagedError
from stagecoach.data.reading import Count, Sha256, not_finite, parse_json
from stagecoach.data.stores.opening import open_storage
from stagecoach.data.stores.storage import SMALL, Storage

FORMAT = 1
"""Version of the index and the manifest."""

JPEG_QUALITY = 95
KEY = re.compile(r"[^./\\\s]+")


def _plain(name: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"it names {name[:120]!r}, expected names of files in its folder")
    return name


class ShardEntry(TypedDict):
    """One shard as the manifest lists it."""

    name: Annotated[str, AfterValidator(_plain)]
    samples: Count
    bytes: Count
    sha256: Sha256
    idx_sha256: Sha256


class FieldRecord(TypedDict, total=False):
    """A field of the schema, as ``schema.Field``."""

    name: Required[str]
    dtype: Required[str]
    shape: Required[list[int | str]]
    pad: int | None
    optional: bool


class SchemaRecord(TypedDict, total=False):
    """The schema that shards were built for, as ``SampleSchema``."""

    name: Required[str]
    version: Required[int]
    fields: Required[list[FieldRecord]]
    window: str | None


class ShardWriter:
    """Write samples into ``<prefix>-<number>.tar`` and ``.tar.idx`` files of at most ``max_bytes`` below ``directory``.

    A context manager: the files get their names when the block ends, and ``shards`` then lists the entries for
    ``write_manifest``; if it raises, nothing of it remains. The same samples give the same bytes: times and owners are
    fixed, and samples stand in the order in which they were added. One larger than ``max_bytes`` gets a tar of its own.

    Raises ``ValueError`` where the directory already holds a finished set, which a manifest protects.
    """

    def __init__(
        self, directory: str | os.PathLike[str], schema: SampleSchema, *, prefix: str = "shard", max_bytes: int = 10**9
    ) -> None:
        self.directory, self.schema, self.prefix, self.max_bytes = Path(directory), schema, prefix, max_bytes
        self.shards: list[ShardEntry] = []
        self._finished: list[ShardEntry] = []
        self._keys: set[str] = set()
        self._tar: ShardTar | None = None
        # Finished and unfinished files wait here, on the file system of their final location.
        self._scratch = temporary_name(self.directory / prefix)

    def __enter__(self) -> ShardWriter:
        if (self.directory / MANIFEST).exists():
            raise ValueError(
                f"{self.directory / MANIFEST}: a finished set is already here, expected a directory "
                f"without a manifest; write elsewhere or remove that set"
            )
        self._scratch.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish_tar()
                self._name_files()
                self.shards = self._finished
        finally:
            if self._tar is not None:
                self._tar.abandon()
            shutil.rmtree(self._scratch, ignore_errors=True)

    def add(self, key: str, arrays: dict[str, np.ndarray], meta: dict[str, Any] | None = None) -> None:
        """Append a sample. ``arrays``: by field name, in the file's dtypes (bf16 as uint16 bits), images as uint8
        ``[H, W, 3]``. ``meta``: anything JSON can hold. Nothing is written of a sample that is refused.

        Raises ``SchemaError`` if it does not fit the schema, ``ValueError`` for a key that is taken or not a key.
        """
        if not KEY.fullmatch(key):
            raise ValueError(
                f"sample key {key!r} is empty or has a dot, slash or blank in it, which would split its "
                f"file names elsewhere; use letters, digits, '-' and '_'"
            )
        if key in self._keys:
            raise ValueError(f"sample key {key!r} was added to {self.directory} before, expected each key once")
        members = _encode(self.schema, key, arrays, meta or {})
        if self._tar is not None and self._tar.bytes_with(members) > self.max_bytes:
            self._finish_tar()
        if self._tar is None:
            path = self._scratch / f"{self.prefix}-{len(self._finished):06d}.tar"
            self._tar = ShardTar(path, self.schema.dims)
        shapes = {name: array.shape for name, array in arrays.items() if array is not None}
        self._tar.add(key, members, sample_sizes(self.schema, shapes))
        self._keys.add(key)

    def _finish_tar(self) -> None:
        if self._tar is not None:
            self._finished.append(self._tar.finish())
            self._tar = None

    def _name_files(self) -> None:
        named: list[Path] = []
        try:
            for path in sorted(self._scratch.iterdir()):
                os.replace(path, self.directory / path.name)
                named.append(self.directory / path.name)
        except BaseException:
            for path in named:
                path.unlink(missing_ok=True)
            raise
        sync_directory(self.directory)


class ShardTar:
    """One tar on its way, hashed as it is written. ``tar_format`` other than USTAR is for names that do not fit it.

    Not through ``webdataset.TarWriter``: it drops its ``format`` argument and writes PAX (an extended header for a long
    or non-ASCII name or a float time), sorts the ``.json`` of a sample between its fields, and tells no offsets.
    """

    def __init__(self, path: Path, dims: tuple[str, ...], tar_format: int = tarfile.USTAR_FORMAT) -> None:
        self.dims = dims
        self.path, self.file, self.hash = path, open(path, "xb"), sha256()  # noqa: SIM115 (finish or abandon)
        # tarfile asks for more than it uses: to write a stream, only for ``write``.
        self.writer = tarfile.open(fileobj=cast(BinaryIO, self), mode="w|", format=tar_format)  # noqa: SIM115
        self.samples: list[dict[str, Any]] = []

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def bytes_with(self, members: dict[str, bytes]) -> int:
        """Size of the tar if it ended after these members: whole records, of which two blocks mark the end."""
        size = self.writer.offset + 2 * tarfile.BLOCKSIZE
        size += sum(tarfile.BLOCKSIZE + _whole(len(data), tarfile.BLOCKSIZE) for data in members.values())
        return _whole(size, tarfile.RECORDSIZE)

    def add(self, key: str, members: Mapping[str, bytes | memoryview], sizes: list[int | None]) -> None:
        extents = {}
        for name, data in members.items():
            info = tarfile.TarInfo(f"{key}.{name}")  # time and owner are 0, or equal samples would make unequal files
            info.size = len(data)
            self.writer.addfile(info, io.BytesIO(data))
            offset = self.writer.offset - _whole(len(data), tarfile.BLOCKSIZE)
            extents[name] = [offset, len(data), crc32(data)]
        self.samples.append({"key": key, "sizes": sizes, "members": extents})

    def finish(self) -> ShardEntry:
        self.writer.close()
        size = self.file.tell()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return index_shard(self.path, self.dims, size, self.hash.hexdigest(), self.samples)

    def abandon(self) -> None:
        """Close without a result. The stream inside the writer has to end first: its destructor would write."""
        with suppress(OSError):
            self.writer.close()
        self.file.close()


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _encode(schema: SampleSchema, key: str, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> dict[str, bytes]:
    """The members of a sample by extension, in the order of the tar."""
    where = f"sample {key!r}"
    unknown = sorted(set(arrays) - {spec.name for spec in schema.fields})
    if unknown:
        raise SchemaError(
            f"{where}: fields {unknown} are not in schema {schema.name!r} version {schema.version}, "
            f"which has {[spec.name for spec in schema.fields]}"
        )
    check_sample(schema, arrays, where)
    present = [spec for spec in schema.fields if arrays.get(spec.name) is not None]
    head = {
        "schema": schema.name,
        "version": schema.version,
        "dtypes": {spec.name: spec.dtype for spec in present},
        "meta": meta,
    }
    members = {"json": json.dumps(head, sort_keys=True).encode()}
    for spec in present:
        buffer = io.BytesIO()
        if spec.dtype == "image":
            Image.fromarray(arrays[spec.name]).save(buffer, "JPEG", quality=JPEG_QUALITY)
            members[f"{spec.name}.jpg"] = buffer.getvalue()
        else:
            np.lib.format.write_array(buffer, np.asarray(arrays[spec.name], order="C"), allow_pickle=False)
            members[f"{spec.name}.npy"] = buffer.getvalue()
    longest = max(len(f"{key}.{name}".encode()) for name in members)
    if longest > tarfile.LENGTH_NAME:
        raise ValueError(
            f"{where}: a member name of {longest} bytes, expected at most {tarfile.LENGTH_NAME} as USTAR "
            f"allows; shorten the key"
        )
    return members


def index_name(tar: str) -> str:
    return tar + ".idx"


def index_path(tar: Path) -> Path:
    return tar.with_name(index_name(tar.name))


def index_shard(
    tar: Path, dims: Sequence[str], size: int, sha256: str, rows: list[Any], skipped: dict[str, str] | None = None
) -> ShardEntry:
    """Write the index of a tar of ``size`` bytes; returns its entry in the manifest."""
    left_out = {"skipped": skipped} if skipped else {}
    index = {"version": FORMAT, "tar": tar.name, "bytes": size, "dims": list(dims), **left_out, "samples": rows}
    entry: ShardEntry = {"name": tar.name, "samples": len(rows), "bytes": size, "sha256": sha256, "idx_sha256": ""}
    return {**entry, "idx_sha256": write_index(tar, index)}


def write_index(tar: Path, index: dict[str, Any]) -> str:
    """Write the index next to its tar, one line per sample, and return the sha256 of the file."""
    lines = ",\n".join(json.dumps(sample, separators=(",", ":")) for sample in index["samples"])
    named = {name: index[name] for name in ("version", "tar", "bytes", "dims", "skipped") if name in index}
    head = json.dumps(named, separators=(",", ":"))
    content = f'{head[:-1]},"samples":[\n{lines}\n]}}\n'.encode()
    with atomic_file(index_path(tar)) as handle:
        handle.write(content)
    return sha256(content).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` of a split says. ``fingerprint`` is the sha256 of ``shards`` and names the data set;
    ``checksums`` holds one of every other part, so that damage is found and what it left whole can be kept.

    ``heads`` is false where another's tool wrote the samples (see ``decode_sample``). ``dropped`` counts the samples
    that ``repair`` left out since the statistics were taken, ``lost`` names parts that it could not bring back.
    """

    schema: SchemaRecord
    shards: Annotated[list[ShardEntry], Field(min_length=1)]
    encoders: dict[str, dict[str, Any]]
    statistics: dict[str, Any]
    fingerprint: str
    checksums: dict[str, str]
    heads: bool = True
    dropped: Count = 0
    lost: tuple[str, ...] = ()
    version: int = FORMAT


def part_checksums(manifest: dict[str, Any]) -> dict[str, str]:
    """sha256 by name of each part of a manifest besides those that are checked otherwise."""
    others = ("shards", "fingerprint", "checksums", "version")
    return {name: sha256_json(value) for name, value in manifest.items() if name not in others}


def describe_schema(schema: SampleSchema) -> SchemaRecord:
    """The schema as JSON holds it: name, version and the fields."""
    return json.loads(json.dumps(asdict(schema)))


def write_manifest(
    directory: str | os.PathLike[str],
    schema: SampleSchema,
    shards: Iterable[ShardEntry],
    encoders: dict[str, Any],
    statistics: dict[str, Any],
    *,
    heads: bool = True,
    dropped: int = 0,
    lost: Sequence[str] = (),
) -> Manifest:
    """Declare these shards finished. They are listed by name, so that the order in which parallel writers ended leaves
    no trace. Raises ``ValueError`` for an empty list or a name that is listed twice."""
    shards = sorted(shards, key=lambda shard: shard["name"])
    if not shards:
        raise ValueError(f"{directory}: no shard to list in its manifest, expected at least one; no sample was written")
    names = [shard["name"] for shard in shards]
    if len(set(names)) < len(names):
        raise ValueError(f"{directory}: shards {sorted({n for n in names if names.count(n) > 1})} are listed twice")
    if bad := not_finite(statistics):
        raise ValueError(
            f"{directory}: the sum {bad!r} of its samples is not finite, expected numbers; check the samples"
        )
    # As it will be read: JSON knows no tuples, and its keys are strings.
    encoders, statistics = json.loads(json.dumps([encoders, statistics]))
    manifest = Manifest(
        describe_schema(schema), shards, encoders, statistics, sha256_json(shards), {}, heads, dropped, tuple(lost)
    )
    manifest = replace(manifest, checksums=part_checksums(asdict(manifest)))
    write_json(Path(directory) / MANIFEST, asdict(manifest))
    return manifest


def read_manifest(directory: str | os.PathLike[str] | Storage) -> Manifest:
    """Raises ``DamagedError`` naming the manifest if it is missing, unreadable or not what its fingerprint says."""
    storage = directory if isinstance(directory, Storage) else open_storage(directory)
    path = storage.describe(MANIFEST)
    try:
        data = storage.read(MANIFEST)
        manifest = parse_json(data, Manifest, path, SMALL)
    except DamagedError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DamagedError(
            f"{path}: no readable manifest of shards ({reason}); build the shards or give the folder that holds "
            "manifest.json"
        ) from error
    checksums, fingerprint = part_checksums(json.loads(data)), sha256_json(manifest.shards)
    if manifest.version != FORMAT:
        raise DamagedError(f"{path}: format version {manifest.version}, expected {FORMAT}; rebuild the shards")
    if manifest.fingerprint != fingerprint:
        raise DamagedError(
            f"{path}: its list of {len(manifest.shards)} shards does not match its fingerprint; it was damaged "
            f"or edited, restore it or run build_shards.py repair"
        )
    if manifest.checksums != checksums:
        differing = sorted(
            name for name in {*manifest.checksums, *checksums} if manifest.checksums.get(name) != checksums.get(name)
        )
        raise DamagedError(
            f"{path}: its {', '.join(differing)} do not match their checksums; it was damaged or "
            f"edited, restore it or run build_shards.py repair"
        )
    return manifest
