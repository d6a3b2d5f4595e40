"""From the raw layout to shards: read and crop clips in threads, encode them, write each split, then give it its name.

Everything is written below a temporary name and renamed when the last manifest stands, so that an interrupted build
leaves no shards, and a second one starts anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.fantasy_world.clip import Clip, ClipOptions, precheck, prepare_clip
from data.fantasy_world.raw import METADATA, RawClip, RawError, read_metadata
from data.fantasy_world.statistics import Statistics
from data.files import MANIFEST, atomic_file, commit_directory, temporary_name
from data.shards import ShardWriter, write_manifest

if TYPE_CHECKING:
    from data.fantasy_world.encode import Encoders

SPLITS = ("train", "val")
SKIPPED = "skipped.jsonl"
TOGETHER = 8
"""Clips that are encoded at once. Twice as many are read ahead, at most 160 MB each at 81 x 480 x 832."""
READERS = max(min(os.cpu_count() or 1, 8), 1)

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Wraps an iterable of known length in a progress bar."""


@dataclass(frozen=True)
class BuildOptions:
    """``image_encoder`` makes shards for image-to-video backbones. ``holdout`` is the part of the clips that goes to
    ``val``, where the metadata does not say."""

    clip: ClipOptions
    vae: Path
    text_encoder: Path
    tokenizer: Path
    image_encoder: Path | None = None
    holdout: float = 0.1
    skip_bad: bool = False
    replace: bool = False
    max_shard_bytes: int = 10**9

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout {self.holdout} found, expected a part of the clips from 0 to below 1")


@dataclass
class BuildReport:
    """What a build made. ``distorted`` counts clips whose camera file gives a lens distortion, which is ignored."""

    output: str
    samples: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    skipped: int = 0
    distorted: int = 0
    seconds: float = 0.0


def build(raw: Path, output: Path, options: BuildOptions, track: Track = lambda items, *_: items) -> BuildReport:
    """Build ``output/train`` and ``output/val`` from the raw data set ``raw``.

    Raises ``RawError`` for the first bad clip, unless ``options.skip_bad``: then it is listed in ``skipped.jsonl``;
    ``EncoderError`` for an encoder that does not load; ``ValueError`` where the output is taken.
    """
    started = time.monotonic()
    _check_output(output, options.replace)
    _remove_stale(output)
    bad = _Skipped(options.skip_bad)
    clips, unreadable = read_metadata(raw)
    for where, error in unreadable:
        bad.add(where, error)
    total = len(clips) + len(unreadable)
    clips = _precheck(clips, options.clip, bad, track)
    if not clips:
        raise RawError(f"{raw / METADATA}: no usable clip among {total}; {bad.first()}")
    splits = assign_splits(clips, options.holdout)
    from data.fantasy_world.encode import Encoders  # takes seconds; a bad file is told before

    encoders = Encoders(options.vae, options.text_encoder, options.tokenizer, options.image_encoder)
    report = BuildReport(str(output))
    temporary = temporary_name(output)
    try:
        _write_splits(temporary, clips, splits, encoders, options, bad, report, track)
        if not report.samples.get("train"):
            raise RawError(f"{raw / METADATA}: no usable clip for training among {total}; {bad.first()}")
        if bad.entries:
            with atomic_file(temporary / SKIPPED, "w") as handle:
                handle.writelines(json.dumps(entry) + "\n" for entry in bad.entries)
        commit_directory(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    report.skipped, report.seconds = len(bad.entries), time.monotonic() - started
    return report


def assign_splits(clips: list[RawClip], holdout: float) -> dict[str, str]:
    """Split by key: what the metadata says, else by a hash of the key, so that a clip stays where it is when others
    come. Where chance leaves ``val`` or ``train`` empty, the nearest clip goes there."""
    places = {clip.key: _fraction(clip.key) for clip in clips if clip.split is None}
    splits = {clip.key: clip.split or ("val" if places[clip.key] < holdout else "train") for clip in clips}
    if holdout and len(places) > 1:
        if "val" not in splits.values():
            splits[min(places, key=places.get)] = "val"
        if "train" not in splits.values():
            splits[max(places, key=places.get)] = "train"
    return splits


def _fraction(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(f"holdout/{key}".encode()).digest()[:8], "big") / 2**64


class _Skipped:
    """Bad clips: the first one stops the build, or all are listed."""

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed
        self.entries: list[dict[str, str]] = []

    def add(self, clip: str, error: RawError) -> None:
        if not self._allowed:
            raise error
        self.entries.append({"clip": clip, "reason": str(error)})

    def first(self) -> str:
        return f"the first one left out: {self.entries[0]['reason']}" if self.entries else "none was left out"


def _precheck(clips: list[RawClip], options: ClipOptions, bad: _Skipped, track: Track) -> list[RawClip]:
    def check(clip: RawClip) -> RawError | None:
        try:
            precheck(clip, options)
        except RawError as error:
            return error
        return None

    good = []
    with ThreadPoolExecutor(READERS) as pool:
        try:
            for clip, error in track(zip(clips, pool.map(check, clips), strict=True), "checking", len(clips)):
                if error is None:
                    good.append(clip)
                else:
                    bad.add(clip.key, error)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return good


def _write_splits(folder: Path, clips: list[RawClip], splits: dict[str, str], encoders: Encoders,
                  options: BuildOptions, bad: _Skipped, report: BuildReport, track: Track) -> None:
    statistics = {split: Statistics(options.clip.frames) for split in SPLITS}
    counts = dict.fromkeys(SPLITS, 0)
    with ExitStack() as stack:
        writers = {split: stack.enter_context(ShardWriter(folder / split, encoders.schema,
                                                          max_bytes=options.max_shard_bytes)) for split in SPLITS}
        prepared = track(_prepared(clips, options.clip, bad), "encoding", len(clips))
        for group in _groups(filter(None, prepared), TOGETHER):
            raws, ready = [raw for raw, _ in group], [clip for _, clip in group]
            samples = encoders.encode(ready, [raw.prompt for raw in raws])
            for raw, clip, arrays in zip(raws, ready, samples, strict=True):
                split = splits[raw.key]
                writers[split].add(raw.key, arrays, {"prompt": raw.prompt, "scale": clip.scale})
                statistics[split].add(clip.depth, clip.extrinsics, clip.intrinsics)
                counts[split] += 1
                report.distorted += clip.distorted
    for split, writer in writers.items():
        if not counts[split]:
            shutil.rmtree(folder / split)
            continue
        write_manifest(folder / split, encoders.schema, writer.shards, encoders.entries, statistics[split].as_dict())
        report.samples[split], report.shards[split] = counts[split], len(writer.shards)
        report.bytes += sum(shard["bytes"] for shard in writer.shards)


def _prepared(clips: list[RawClip], options: ClipOptions, bad: _Skipped) -> Iterator[tuple[RawClip, Clip] | None]:
    """Clips in their order, read ahead in threads; None where one is left out."""
    waiting = iter(clips)
    with ThreadPoolExecutor(READERS) as pool:
        pending = deque((clip, pool.submit(prepare_clip, clip, options)) for clip in islice(waiting, 2 * TOGETHER))
        try:
            while pending:
                clip, future = pending.popleft()
                try:
                    ready = clip, future.result()
                except RawError as error:
                    bad.add(clip.key, error)
                    ready = None
                pending.extend((c, pool.submit(prepare_clip, c, options)) for c in islice(waiting, 1))
                yield ready
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def _check_output(output: Path, replace: bool) -> None:
    """An existing folder is only replaced if it is empty, or holds shards and the caller says so."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"{output}: a file found, expected a folder for the shards or nothing")
    if any((output / split / MANIFEST).exists() for split in SPLITS):
        if not replace:
            raise ValueError(f"{output}: holds finished shards; give another folder, or --replace to build them anew")
    elif any(output.iterdir()):
        raise ValueError(f"{output}: holds files that are no shards, expected an empty or a new folder")


def _remove_stale(output: Path) -> None:
    """Remove what a build of this output that was killed on this machine left behind."""
    own = temporary_name(output.absolute())
    if not own.parent.is_dir():
        return
    start = own.name.rsplit(".", 2)[0] + "."
    for path in own.parent.iterdir():
        process = path.name.removeprefix(start).partition(".")[0]
        if path.name.startswith(start) and process.isdigit() and not _alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
