"""Generated damage to a small set of shards, for tests: what can happen to files, and what it is called.

A damage is a function of a random generator and of the files' bytes by name; it gives the files that it changes (None:
removed). Names of tars, indices and places inside them are drawn, not listed.
"""

import io
import json
import re
import tarfile
from collections.abc import Callable

import numpy as np

from stagecoach.data.files import MANIFEST

Files = dict[str, bytes]
Changes = dict[str, bytes | None]
Damage = Callable[[np.random.Generator, Files], Changes]
BLOCK = tarfile.BLOCKSIZE
NPY_HEADER = 128
"""Bytes before the numbers of a small .npy file."""


def tars(files: Files) -> list[str]:
    return sorted(name for name in files if name.endswith(".tar"))


def pick(rng: np.random.Generator, names: list[str]) -> str:
    return names[rng.integers(len(names))]


def regions(files: Files, tar: str) -> dict[str, list[int]]:
    """Bytes of a tar by what they are for."""
    rows = json.loads(files[f"{tar}.idx"])["samples"]
    places = sorted((offset, size, name) for row in rows for name, (offset, size, _) in row["members"].items())
    found: dict[str, list[int]] = {"data": [], "numbers": [], "header": [], "padding": []}
    end = 0
    for offset, size, name in places:
        end = offset + -(-size // BLOCK) * BLOCK
        found["data"] += range(offset, offset + size)
        found["numbers"] += range(offset + NPY_HEADER, offset + size) if name.endswith(".npy") else ()
        found["header"] += range(offset - BLOCK, offset)
        found["padding"] += range(offset + size, end)
    mark = end + 2 * BLOCK
    return {**found, "end_mark": list(range(end, mark)), "record": list(range(mark, len(files[tar])))}


def flip(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def flips_in(region: str) -> Damage:
    def damage(rng: np.random.Generator, files: Files) -> Changes:
        tar = pick(rng, [name for name in tars(files) if regions(files, name)[region]])
        found = regions(files, tar)[region]
        return {tar: flip(files[tar], found[rng.integers(len(found))], int(rng.integers(8)))}

    return damage


def of_any(suffix: str, change: Callable[[np.random.Generator, bytes], bytes | None]) -> Damage:
    """``change`` of one file of that kind."""

    def damage(rng: np.random.Generator, files: Files) -> Changes:
        name = pick(rng, sorted(name for name in files if name.endswith(suffix)))
        return {name: change(rng, files[name])}

    return damage


def cut(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: rng.integers(1, len(data))]


def grow(rng: np.random.Generator, data: bytes) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 2000)))


def flip_any(rng: np.random.Generator, data: bytes) -> bytes:
    return flip(data, int(rng.integers(len(data))), int(rng.integers(8)))


def zero(rng: np.random.Generator, data: bytes) -> bytes:
    """A run of zeros where something was."""
    solid = [place for place in range(0, len(data), BLOCK) if any(data[place : place + BLOCK])]
    first = solid[rng.integers(len(solid))]
    size = min(BLOCK * int(rng.integers(1, 5)), len(data) - first)
    return data[:first] + bytes(size) + data[first + size :]


def edit_number(rng: np.random.Generator, data: bytes) -> bytes:
    """One number of a JSON file becomes another."""
    found = list(re.finditer(rb"(?<![\w.\"])\d+", data))
    match = found[rng.integers(len(found))]
    number = int(match[0]) + int(rng.integers(1, 1000)) * (1 if rng.integers(2) else -1)
    return data[: match.start()] + str(number).encode() + data[match.end() :]


def break_json(rng: np.random.Generator, data: bytes) -> bytes:
    marks = [place for place, byte in enumerate(data) if byte in b'{}[]:,"']
    place = marks[rng.integers(len(marks))]
    return data[:place] + data[place + 1 :]


def swap(suffix: str) -> Damage:
    def damage(rng: np.random.Generator, files: Files) -> Changes:
        names = [tar + suffix for tar in tars(files)]
        one, other = rng.permutation(len(names))[:2]
        return {names[one]: files[names[other]], names[other]: files[names[one]]}

    return damage


def _with_index(damage: Damage, rng: np.random.Generator, files: Files) -> Changes:
    changes = damage(rng, files)
    names = list(changes)
    return {**changes, f"{names[0]}.idx": files[f"{names[1]}.idx"], f"{names[1]}.idx": files[f"{names[0]}.idx"]}


def in_samples(change: Callable[[np.random.Generator, list[list[tuple[str, bytes]]]], None]) -> Damage:
    """The tar written again after a change of its list of samples, each a list of (name, data)."""

    def damage(rng: np.random.Generator, files: Files) -> Changes:
        name = pick(rng, [tar for tar in tars(files) if len(json.loads(files[f"{tar}.idx"])["samples"]) > 1])
        samples: dict[str, list[tuple[str, bytes]]] = {}
        with tarfile.open(fileobj=io.BytesIO(files[name])) as tar:
            for info in tar:
                samples.setdefault(info.name.partition(".")[0], []).append((info.name, tar.extractfile(info).read()))
        groups = list(samples.values())
        change(rng, groups)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for member, data in (pair for group in groups for pair in group):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return {name: out.getvalue()}

    return damage


def double(rng: np.random.Generator, groups: list) -> None:
    groups.insert(int(rng.integers(len(groups) + 1)), list(groups[rng.integers(len(groups))]))


def reorder(rng: np.random.Generator, groups: list) -> None:
    groups.insert(0, groups.pop(int(rng.integers(1, len(groups)))))


def replace_in_json(old: bytes, new: bytes) -> Callable:
    def change(rng: np.random.Generator, groups: list) -> None:
        group = groups[rng.integers(len(groups))]
        group[:] = [(name, data.replace(old, new) if name.endswith(".json") else data) for name, data in group]

    return change


def scramble_head(rng: np.random.Generator, groups: list) -> None:
    """The sample's .json is no JSON any more, of the same length."""
    group = groups[rng.integers(len(groups))]
    name, data = group[0]
    group[0] = (name, break_json(rng, data) + b" ")


def drop_member(rng: np.random.Generator, groups: list) -> None:
    group = groups[rng.integers(len(groups))]
    group.pop(int(rng.integers(len(group))))


def edit_rows(change: Callable[[np.random.Generator, list], None]) -> Damage:
    def damage(rng: np.random.Generator, files: Files) -> Changes:
        name = pick(rng, [tar for tar in tars(files) if len(json.loads(files[f"{tar}.idx"])["samples"]) > 1])
        index = json.loads(files[f"{name}.idx"])
        change(rng, index["samples"])
        return {f"{name}.idx": json.dumps(index).encode()}

    return damage


def edit_manifest(change: Callable[[np.random.Generator, dict], None]) -> Damage:
    def damage(rng: np.random.Generator, files: Files) -> Changes:
        manifest = json.loads(files[MANIFEST])
        change(rng, manifest)
        return {MANIFEST: json.dumps(manifest, indent=1, sort_keys=True).encode()}

    return damage


def other_version(rng: np.random.Generator, manifest: dict) -> None:
    manifest["schema"]["version"] = int(rng.integers(2, 9))


def other_dtype(rng: np.random.Generator, manifest: dict) -> None:
    manifest["schema"]["fields"][rng.integers(4)]["dtype"] = pick(rng, ["f64", "u8", "i64"])


def other_statistics(rng: np.random.Generator, manifest: dict) -> None:
    manifest["statistics"]["depth_sum"] += float(rng.random()) + 0.1


def other_encoder(rng: np.random.Generator, manifest: dict) -> None:
    manifest["encoders"]["text"]["name"] = f"other{rng.integers(100)}"


def drop_entry(rng: np.random.Generator, manifest: dict) -> None:
    manifest["shards"].pop(int(rng.integers(len(manifest["shards"]))))


def remove(rng: np.random.Generator, data: bytes) -> None:
    return None


def empty(rng: np.random.Generator, data: bytes) -> bytes:
    return b""


DAMAGES: dict[str, Damage] = {
    **{
        f"tar: bit flipped in {region}": flips_in(region)
        for region in ("data", "numbers", "header", "padding", "end_mark", "record")
    },
    "tar: cut": of_any(".tar", cut),
    "tar: grown": of_any(".tar", grow),
    "tar: zeroed": of_any(".tar", zero),
    "tar: missing": of_any(".tar", remove),
    "tar: empty": of_any(".tar", empty),
    "tar: swapped": swap(""),
    "tar and index: swapped": lambda rng, files: _with_index(swap(""), rng, files),
    "tar: sample twice": in_samples(double),
    "tar: samples reordered": in_samples(reorder),
    "tar: member missing": in_samples(drop_member),
    "tar: head scrambled": in_samples(scramble_head),
    "tar: head of another version": in_samples(replace_in_json(b'"version": 1', b'"version": 2')),
    "tar: head of another schema": in_samples(replace_in_json(b'"schema": "tiny"', b'"schema": "tony"')),
    "tar: head of another dtype": in_samples(replace_in_json(b'"depth": "f16"', b'"depth": "u16"')),
    "index: cut": of_any(".idx", cut),
    "index: grown": of_any(".idx", grow),
    "index: zeroed": of_any(".idx", zero),
    "index: bit flipped": of_any(".idx", flip_any),
    "index: missing": of_any(".idx", remove),
    "index: empty": of_any(".idx", empty),
    "index: swapped": swap(".idx"),
    "index: number edited": of_any(".idx", edit_number),
    "index: no JSON": of_any(".idx", break_json),
    "index: row twice": edit_rows(double),
    "index: rows reordered": edit_rows(reorder),
    "manifest: cut": of_any(MANIFEST, cut),
    "manifest: grown": of_any(MANIFEST, grow),
    "manifest: zeroed": of_any(MANIFEST, zero),
    "manifest: bit flipped": of_any(MANIFEST, flip_any),
    "manifest: missing": of_any(MANIFEST, remove),
    "manifest: empty": of_any(MANIFEST, empty),
    "manifest: number edited": of_any(MANIFEST, edit_number),
    "manifest: no JSON": of_any(MANIFEST, break_json),
    "manifest: schema version": edit_manifest(other_version),
    "manifest: dtype": edit_manifest(other_dtype),
    "manifest: statistics": edit_manifest(other_statistics),
    "manifest: encoder": edit_manifest(other_encoder),
    "manifest: entry missing": edit_manifest(drop_entry),
    "manifest: entry twice": edit_manifest(lambda rng, manifest: double(rng, manifest["shards"])),
    "manifest: entries reordered": edit_manifest(lambda rng, manifest: reorder(rng, manifest["shards"])),
}
"""What can happen, by name."""
