"""The raw layouts: where the files of each dance lie. ``videos`` is the documented one; see ``LAYOUTS``.

All of them take ``dances.json`` (``data.dance_with_music.raw``) and ``audio/<name>.wav`` at their root. A dance without
poses or without music is an error that says so: neither is detected or made up.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.footage import PICTURES
from stagecoach.data.dance_with_music.poses import PoseUnit
from stagecoach.data.dance_with_music.raw import METADATA, RawDance, Reference, described, read_metadata, sound_beside
from stagecoach.data.encoding.audio import has_audio

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")
AIST_RATE = 60.0
POSES_WANTED = "expected DWPose's 134 points as JSON; detect them first, this builder does not"

Found = tuple[list[RawDance], list[tuple[str, RawError]]]
Candidate = tuple[str, Callable[[dict[str, Any]], RawDance]]
"""Name of a dance, and what makes it of what the metadata says."""


def read_layout(base: Path, layout: str, unit: PoseUnit | None = None, rate: float | None = None) -> Found:
    """The dances below ``base`` by name, and what is wrong with those that cannot be used. ``unit`` of the poses and
    ``rate`` of folders of pictures: None is the layout's own. Raises ``RawError`` where there is none at all."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} found, expected one of {sorted(LAYOUTS)}")
    metadata = read_metadata(base)
    dances: list[RawDance] = []
    bad: list[tuple[str, RawError]] = []
    for name, make in sorted(LAYOUTS[layout](base), key=lambda found: found[0]):
        try:
            dance = make(described(base, name, metadata.pop(name, {})))
            if any(dance.key == other.key for other in dances):
                raise RawError(
                    f"{dance.footage}: another dance is called {dance.key} too, expected names that differ "
                    f"in letters, digits, '-' and '_'"
                )
        except RawError as error:
            bad.append((name, error))
            continue
        dances.append(replace(dance, unit=unit or dance.unit, rate=rate or dance.rate))
    bad += [
        (name, RawError(f"{base / METADATA}: entry {name!r} names no dance of layout {layout!r} below {base}"))
        for name in metadata
    ]
    if not dances and not bad:
        raise RawError(
            f"{base}: no dance of layout {layout!r} found, expected {EXPECTED[layout]}; the layouts are "
            f"{sorted(LAYOUTS)}"
        )
    return dances, bad


def _videos(base: Path) -> Iterator[Candidate]:
    return ((video.stem, partial(_video, base, video)) for video in _files(base / "videos", VIDEOS))


def _video(base: Path, video: Path, known: dict[str, Any]) -> RawDance:
    name = video.stem
    rows = base / "music_features" / name
    picture = _first(*(base / "reference_images" / f"{name}{suffix}" for suffix in PICTURES))
    return _dance(
        base,
        name,
        video,
        base / "poses" / name,
        "normalised",
        known,
        rows=_first(rows, rows.with_suffix(".npy"), rows.with_suffix(".h5")),
        faces=_first(base / "faces" / name),
        reference=picture and Reference(picture, _first(base / "reference_images" / f"{name}.json")),
    )


def _clips(base: Path) -> Iterator[Candidate]:
    for part, split in (("train", "train"), ("validation", "val")):
        yield from ((folder.name, partial(_clip, base, folder, split)) for folder in _folders(base / part))


def _clip(base: Path, folder: Path, split: str, known: dict[str, Any]) -> RawDance:
    picture = _first(*(folder / f"reference_image{suffix}" for suffix in PICTURES))
    if not (folder / "video.mp4").is_file():
        raise RawError(f"{folder / 'video.mp4'}: missing, expected the dance")
    return _dance(
        base,
        folder.name,
        folder / "video.mp4",
        folder / "pose_annotations.json",
        "pixel",
        {"split": split, **known},
        rows=_first(folder / "music_features.npy"),
        reference=picture and Reference(picture, embedding=_first(folder / "face_embedding.npy")),
    )


def _p00002(base: Path) -> Iterator[Candidate]:
    return _folder_dances(base, [base] if (base / "images").is_dir() else _folders(base), ("poses",), 30.0)


def _stableanimator(base: Path) -> Iterator[Candidate]:
    folders = [folder for part in ("rec", "vec") for folder in _folders(base / part)]
    return _folder_dances(base, folders, ("poses",), AIST_RATE)


def _champ(base: Path) -> Iterator[Candidate]:
    folders = [video for part in _folders(base) for video in [part, *_folders(part)]]
    return _folder_dances(base, folders, ("dwpose", "poses"), 30.0)


def _folder_dances(base: Path, folders: list[Path], poses: tuple[str, ...], rate: float) -> Iterator[Candidate]:
    """Dances as folders of pictures. Their ``poses`` are drawings in the published sets, so JSON has to be added, and
    so has sound, unless rows of AIST's HDF5 are there."""
    found = [folder for folder in folders if (folder / "images").is_dir()]
    return ((folder.name, partial(_folder_dance, base, folder, poses, rate)) for folder in found)


def _folder_dance(base: Path, folder: Path, poses: tuple[str, ...], rate: float, known: dict[str, Any]) -> RawDance:
    found = next((folder / part for part in poses if any((folder / part).glob("*.json"))), None)
    if found is None:
        raise RawError(f"{folder / poses[0]}: no .json found (drawings of skeletons are not enough), {POSES_WANTED}")
    part = folder.parent.name if folder != base else ""
    sound = next(iter(_files(folder, (".wav", ".mp3", ".m4a", ".flac", ".ogg"))), None)
    return _dance(
        base,
        folder.name,
        folder / "images",
        found,
        "normalised",
        {**known, **({"audio": sound} if sound and "audio" not in known else {})},
        rows=_first(*(root / "aist_hdf5" / part / f"{folder.name}.h5" for root in (base, base.parent))),
        faces=_first(folder / "faces"),
        rate=rate,
    )


def _dance(
    base: Path, name: str, footage: Path, poses: Path, unit: PoseUnit, known: dict[str, Any], **more: Any
) -> RawDance:
    if not poses.exists():
        raise RawError(f"{poses}: missing, {POSES_WANTED}")
    audio = known.pop("audio", None) or sound_beside(base, name)
    if audio is None and footage.is_file() and has_audio(footage):
        audio = footage
    if audio is None and more.get("rows") is None:
        raise RawError(
            f"{footage}: neither sound nor rows of music found for dance {name!r}, expected a video with "
            f"sound, {base / 'audio' / name}.wav or precomputed rows; music is never made up"
        )
    return RawDance(name, footage, poses, unit, audio=audio, **known, **more)


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes) if folder.is_dir() else []


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


LAYOUTS: dict[str, Callable[[Path], Iterator[Candidate]]] = {
    "videos": _videos,
    "clips": _clips,
    "p00002": _p00002,
    "stableanimator": _stableanimator,
    "champ": _champ,
}
"""``videos``: of the user's guide, the default. ``clips``: a folder per clip in ``train`` and ``validation``.
``p00002``, ``stableanimator``, ``champ``: folders of pictures, which need poses as JSON and music to be added."""

EXPECTED = {
    "videos": "videos/<name>.mp4 and poses/<name>/frame_000.json",
    "clips": "train/<name>/video.mp4 and train/<name>/pose_annotations.json",
    "p00002": "images/frame_0.png and poses/frame_0.json",
    "stableanimator": "rec/<name>/images/frame_0.png and rec/<name>/poses/frame_0.json",
    "champ": "<part>/<name>/images/0000.png and <part>/<name>/dwpose/0000.json",
}
LAYOUT_HELP = "; ".join(f"{name}: {EXPECTED[name]}" for name in LAYOUTS) + " (default: videos)"
