"""A tar from its first byte to its last in one pass: its samples, its sha256, and whether it really ends."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, cast

from isal.isal_zlib import crc32

from stagecoach.data.local_files import DamagedError, LocalFile, UnreachableError

NAME = re.compile(r"(?P<key>(?:.*/|)[^./]+)\.(?P<member>[^/]*)", re.DOTALL)
"""``<folders>/<key>.<member>``; the key ends at the first dot of the base name."""

META = re.compile(r"__[^/]*__($|/)")
CHUNK = 1 << 20
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""The first bytes of what one may have packed a tar with."""


@dataclass(frozen=True)
class TarSample:
    """Neighbouring members of one key: name without the key -> (offset of the data in the tar, data). ``links``: those
    that are another name of a file and have no data here, name -> the file."""

    key: str
    members: dict[str, tuple[int, bytes]]
    links: dict[str, str] = field(default_factory=dict)

    def extents(self) -> dict[str, list[int]]:
        """Offset, size and crc32 by member, as an index has them."""
        return {name: [offset, len(data), crc32(data)] for name, (offset, data) in self.members.items()}


class PassedOver(dict[str, tuple[int, str]]):
    """What is no part of a sample: how many of a kind, and the name of the first."""

    def add(self, kind: str, first: str, count: int = 1) -> None:
        before, name = self.get(kind, (0, first))
        self[kind] = before + count, name

    def add_all(self, other: PassedOver) -> None:
        for kind, (count, name) in other.items():
            self.add(kind, name, count)

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {kind} (first {name})" for kind, (count, name) in sorted(self.items()))


class TarWalk:
    """Iterating gives the samples of an uncompressed tar in its order, each once, and holds one at a time.

    Names are split as webdataset splits them; what it passes over (folders, devices, names without an extension,
    ``__meta__`` files) is passed over, and all but folders are counted in ``passed_over``. Raises ``DamagedError``
    naming the tar where it cannot be read to its end mark, where something follows the mark, and where the members of a
    sample are not neighbours or come twice; ``UnreachableError`` where the file system gives no answer.

    A context manager. ``digest()`` reads what is left, also after a failure, and returns the sha256 of the whole file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.passed_over = PassedOver()

    def __enter__(self) -> TarWalk:
        self._local = LocalFile(self.path)
        self._file = _Hashed(self._local)
        self.bytes = self._file.size
        return self

    def __exit__(self, *_: object) -> None:
        self._local.close()

    def digest(self) -> str:
        self._file.seek(self.bytes)
        return self._file.hash.hexdigest()

    def __iter__(self) -> Iterator[TarSample]:
        seen: set[str] = set()
        current: TarSample | None = None
        for name, offset, data, target in self._members():
            found = NAME.fullmatch(name)
            if found is None or META.match(name):
                self.passed_over.add("names without key and extension" if found is None else "__meta__ files", name)
                continue
            key, member = found["key"], found["member"]
            if current is None or key != current.key:
                if current is not None:
                    yield current
                if key in seen:
                    raise DamagedError(
                        f"{self.path}: the members of sample {key!r} are not side by side; write the "
                        f"tar again sorted by name"
                    )
                seen.add(key)
                current = TarSample(key, {})
            if member in current.members or member in current.links:
                raise DamagedError(
                    f"{self.path}: sample {key!r} has {member!r} twice, expected each member once; write the tar again"
                )
            if target is None:
                current.members[member] = (offset, data)
            else:
                current.links[member] = target
        if current is not None:
            yield current

    def _members(self) -> Iterator[tuple[str, int, bytes, str | None]]:
        """Name, offset, data, and of a link what it is another name of."""
        last = "the start"
        try:
            with tarfile.open(fileobj=cast(BinaryIO, self._file), mode="r:") as tar:
                while (info := tar.next()) is not None:
                    vars(tar)["members"].clear()  # tarfile remembers all headers otherwise
                    if info.issym() or info.islnk():
                        yield info.name, info.offset_data, b"", info.linkname
                        continue
                    if not info.isfile():
                        if not info.isdir():
                            self.passed_over.add("devices", info.name)
                        continue
                    if info.issparse():
                        raise tarfile.ReadError(
                            f"member {info.name!r} is stored as a sparse file, which has no bytes of its own to point "
                            "to; write the tar without --sparse"
                        )
                    if not 0 <= info.size <= self.bytes - info.offset_data:
                        raise tarfile.ReadError(f"member {info.name!r} of {info.size} bytes does not lie in the file")
                    self._file.seek(info.offset_data)
                    yield info.name, info.offset_data, self._file.read(info.size), None
                    last = repr(info.name)
            # tarfile takes a damaged header in the middle for the end; the real end is marked by two blocks of zeros.
            rest, zeros = self._file.last, bytes(tarfile.BLOCKSIZE)
            marked = rest == zeros and self._file.read(tarfile.BLOCKSIZE) == zeros
            clean = marked and all(not any(rest) for rest in iter(lambda: self._file.read(CHUNK), b""))
        except UnreachableError:
            raise
        except (OSError, EOFError, OverflowError, tarfile.TarError, ValueError) as error:
            packed = _compression(self._local) if last == "the start" else None
            if packed is not None:
                raise DamagedError(
                    f"{self.path}: compressed by {packed}, expected a plain tar, of which single samples can be read; "
                    f"unpack it first ({packed} -d)"
                ) from error
            raise DamagedError(
                f"{self.path}: not a readable, uncompressed tar behind {last} ({error}); build or copy "
                f"it again, or run build_shards.py repair"
            ) from error
        if not clean:
            what = "something follows the end mark" if marked else "no end mark"
            raise DamagedError(
                f"{self.path}: {what} behind {last} at byte {tar.offset} of {self.bytes}, expected two blocks of "
                "zeros and nothing else; it was cut, damaged or joined, copy or write it again"
            )


def _compression(file: LocalFile) -> str | None:
    start = file.read(0, 6)
    return next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), None)


class _Hashed:
    """A file that is only read forwards, and hashed on the way."""

    def __init__(self, file: LocalFile) -> None:
        self._file, self._position = file, 0
        self.size = file.size
        self.hash, self.last = sha256(), b""

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        # A damaged header may tell of any size: no more is asked for than there is.
        self.last = self._file.read(self._position, size)
        self._position += len(self.last)
        self.hash.update(self.last)
        return self.last

    def seek(self, position: int) -> None:
        if position < self._position:
            raise OSError(f"byte {position} comes before {self._position}, which was read")
        while self._position < position and self.read(min(position - self._position, CHUNK)):
            pass
