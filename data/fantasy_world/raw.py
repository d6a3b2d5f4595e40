"""The raw layout: ``metadata.json`` and what its entries name (``readers`` reads those files)."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import check_split, read_json, safe_key

METADATA = "metadata.json"


@dataclass(frozen=True)
class RawClip:
    """One entry of ``metadata.json``, or one of the clips of its video. ``key`` names the sample in a tar: unique,
    without dots. ``intrinsics``: for camera files without, fx fy cx cy or a file; ``start``: the clip's first camera,
    where the entry says one."""

    key: str
    video: Path
    prompt: str
    cameras: Path
    depth: Path | None
    points: Path | None
    mask: Path | None
    split: Literal["train", "val"] | None
    intrinsics: tuple[float, ...] | Path | None = None
    start: int | None = None


def read_metadata(base: Path) -> tuple[list[RawClip], list[tuple[str, RawError]]]:
    """Clips of ``base/metadata.json`` in its order, and what is wrong with the entries that could not be used.

    Raises ``RawError`` where the file is missing or is not a list.
    """
    path = base / METADATA
    entries = read_json(path, "a list of clips")
    if not isinstance(entries, list) or not entries:
        found = f"a list of {len(entries)}" if isinstance(entries, list) else type(entries).__name__
        raise RawError(f"{path}: holds {found}, expected a list of {{video, prompt, depth, camera_params}}")
    stems = Counter(_stem(e) for e in entries if isinstance(e, dict) and isinstance(e.get("video"), str))
    clips, bad, seen = [], [], set()
    for index, entry in enumerate(entries):
        where = f"{path}: entry {index}"
        try:
            clip = _read_entry(base, entry, where, stems)
            if clip.key in seen:
                raise RawError(f"{where}: {entry['video']} with the same prompt and cameras is listed twice")
        except RawError as error:
            bad.append((where, error))
            continue
        seen.add(clip.key)
        clips.append(clip)
    return clips, bad


def _read_entry(base: Path, entry: object, where: str, stems: Counter[str]) -> RawClip:
    if not isinstance(entry, dict):
        raise RawError(
            f"{where}: holds {type(entry).__name__}, expected an object with video, prompt, depth and camera_params"
        )
    for name in ("video", "prompt", "camera_params"):
        if not isinstance(entry.get(name), str):
            raise RawError(f"{where}: {name!r} is {entry.get(name)!r}, expected a text; found keys {sorted(entry)}")
    if not entry.get("depth") and not entry.get("points"):
        raise RawError(
            f"{where}: neither 'depth' nor 'points' is given, expected one of them; found keys {sorted(entry)}"
        )
    check_split(entry, where)
    paths, inner = {}, entry.get("intrinsics")
    numbers = isinstance(inner, list) and len(inner) == 4 and all(isinstance(x, int | float) and x > 0 for x in inner)
    if not (inner is None or isinstance(inner, str) or numbers):
        raise RawError(f"{where}: 'intrinsics' is {inner!r:.80}, expected fx fy cx cy or the name of a file")
    start = entry.get("start")
    if start is not None and (type(start) is not int or start < 0):
        raise RawError(f"{where}: 'start' is {start!r:.80}, expected the number of the clip's first camera")
    for name in ("video", "camera_params", "depth", "points", "mask", "intrinsics"):
        if name == "points" and entry.get("depth"):
            continue
        if entry.get(name) is not None and not (name == "intrinsics" and numbers):
            paths[name] = base / entry[name]
            if not paths[name].exists():
                raise RawError(
                    f"{paths[name]}: missing, expected the {name} of entry {where.rpartition(' ')[2]} "
                    f"of {base / METADATA}"
                )
    return RawClip(
        _key(entry, stems),
        paths["video"],
        entry["prompt"],
        paths["camera_params"],
        paths.get("depth"),
        paths.get("points"),
        paths.get("mask"),
        entry.get("split"),
        tuple(map(float, inner)) if isinstance(inner, list) else paths.get("intrinsics"),
        start,
    )


def _stem(entry: dict) -> str:
    return safe_key(Path(entry["video"]).stem) or "clip"


def _key(entry: dict, stems: Counter[str]) -> str:
    """The video's name; where several share it, with a hash of what tells them apart, so that order does not matter."""
    stem = _stem(entry)
    if stems[stem] == 1:
        return stem
    content = "\0".join([entry["video"], entry["prompt"], entry["camera_params"]])
    content += f"\0{entry['start']}" if entry.get("start") is not None else ""
    return f"{stem}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
