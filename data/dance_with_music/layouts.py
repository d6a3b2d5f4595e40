"""The raw layouts: where the files of each dance lie. ``videos`` is the documented one; see ``LAYOUTS``.

All of them take ``dances.json`` (``data.dance_with_music.raw``) and ``audio/<name>.wav`` at their root. A dance without
poses or without music is an error that says so: neither is detected or made up.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.poses import PLAIN, PoseReading
from stagecoach.data.dance_with_music.poses import SUFFIXES as POSE_SUFFIXES
from stagecoach.data.dance_with_music.raw import (
    METADATA,
    SOUNDS,
    RawDance,
    Reference,
    described,
    read_metadata,
    sound_beside,
)
from stagecoach.data.encoding.audio import has_audio
from stagecoach.data.names import composed
from stagecoach.data.pictures import SUFFIXES as PICTURES

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv")
ROWS = (".npy", ".h5", ".hdf5")
AIST_RATE = 60.0
SEED_CANVAS = (512.0, 512.0)
"""Pictures that poses of layout clips were found in."""
POSES_WANTED = "expected DWPose's 134 points as JSON; detect them first, this builder does not"

_log = logging.getLogger(__name__)

Found = tuple[list[RawDance], list[tuple[str, RawError]]]
Candidate = tuple[str, Callable[[dict[str, Any]], RawDance]]
"""Name of a dance, and what makes it of what the metadata says."""


def read_layout(base: Path, layout: str, reading: PoseReading = PLAIN, rate: float | None = None) -> Found:
    """The dances below ``base`` by name, and what is wrong with those that cannot be used. ``reading`` of the poses,
    but for what the layout assumes; ``rate`` of folders of pictures: None is the layout's own. Raises ``RawError``
    where there is none at all."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} found, expected one of {sorted(LAYOUTS)}")
    metadata = {composed(name): entry for name, entry in read_metadata(base).items()}
    dances: list[RawDance] = []
    bad: list[tuple[str, RawError]] = []
    candidates = ((composed(name), make) for name, make in LAYOUTS[layout](base))
    for name, make in sorted(candidates, key=lambda found: found[0]):
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
        own = replace(reading, assumed=dance.reading.assumed, assumed_canvas=dance.reading.assumed_canvas)
        dances.append(replace(dance, reading=own, rate=rate or dance.rate))
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


class _Named:
    """What lies in a folder, by name without suffix. Which of two files of one name is meant nobody knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not path.name.startswith("."):
                self._found.setdefault(composed(path.name if path.is_dir() else path.stem), []).append(path)

    def one(self, name: str, suffixes: Sequence[str], folder: bool = False) -> Path | None:
        """The file of one of the ``suffixes``, or the ``folder``. Raises ``RawError`` where there are several."""
        found = [
            path
            for path in self._found.get(composed(name), ())
            if (folder if path.is_dir() else path.suffix.lower() in suffixes)
        ]
        if len(found) > 1:
            raise RawError(
                f"{found[0]} and {found[1].name} are both there for {name!r}, expected one of them; remove the other"
            )
        return found[0] if found else None

    def warn_of_others(self, names: Sequence[str], suffixes: Sequence[str], what: str, folders: bool = False) -> None:
        """Say what is passed over: files of other suffixes, and those whose name no dance has."""
        wanted = set(map(composed, names))
        others = [
            path
            for name, paths in self._found.items()
            for path in paths
            if name not in wanted or not (folders if path.is_dir() else path.suffix.lower() in suffixes)
        ]
        if others:
            _log.warning(
                "%s: %d files or folders passed over (first %s), no %s of a dance",
                self.folder,
                len(others),
                others[0].name,
                what,
            )


def _videos(base: Path) -> Iterator[Candidate]:
    videos = [path for path in _files(base / "videos", VIDEOS) if not path.name.startswith(".")]
    names = [path.stem for path in videos]
    kinds = {
        "videos": (VIDEOS, "video", False),
        "poses": (POSE_SUFFIXES, "poses", True),
        "reference_images": ((*PICTURES, ".json", ".npy"), "reference", False),
        "music_features": (ROWS, "music", True),
        "audio": (SOUNDS, "song", False),
    }
    named = {kind: _Named(base / kind) for kind in (*kinds, "faces")}
    for kind, (suffixes, what, folders) in kinds.items():
        named[kind].warn_of_others(names, suffixes, what, folders)
    return ((video.stem, partial(_video, base, video, named)) for video in videos)


def _video(base: Path, video: Path, named: dict[str, _Named], known: dict[str, Any]) -> RawDance:
    name = video.stem
    picture = named["reference_images"].one(name, PICTURES)
    known.setdefault("audio", named["audio"].one(name, SOUNDS))
    poses = named["poses"].one(name, POSE_SUFFIXES, folder=True)
    return _dance(
        base,
        name,
        video,
        poses or base / "poses" / name,
        PLAIN,
        known,
        rows=named["music_features"].one(name, ROWS, folder=True),
        faces=named["faces"].one(name, (), folder=True),
        reference=picture and Reference(picture, named["reference_images"].one(name, POSE_SUFFIXES)),
    )


def _clips(base: Path) -> Iterator[Candidate]:
    for part, split in (("train", "train"), ("validation", "val")):
        yield from ((folder.name, partial(_clip, base, folder, split)) for folder in _folders(base / part))


def _clip(base: Path, folder: Path, split: str, known: dict[str, Any]) -> RawDance:
    picture = _Named(folder).one("reference_image", PICTURES)
    if not (folder / "video.mp4").is_file():
        raise RawError(f"{folder / 'video.mp4'}: missing, expected the dance")
    return _dance(
        base,
        folder.name,
        folder / "video.mp4",
        folder / "pose_annotations.json",
        PoseReading(assumed="pixel", assumed_canvas=SEED_CANVAS),
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
    found = next((folder / part for part in poses if _files(folder / part, POSE_SUFFIXES)), None)
    if found is None:
        raise RawError(
            f"{folder / poses[0]}: no .json or .npy found (drawings of skeletons are not enough), {POSES_WANTED}"
        )
    part = folder.parent.name if folder != base else ""
    sounds = _files(folder, SOUNDS[:-1])
    if len(sounds) > 1:
        raise RawError(f"{sounds[0]} and {sounds[1].name} are both there, expected one song; remove the other")
    sound = next(iter(sounds), None)
    return _dance(
        base,
        folder.name,
        folder / "images",
        found,
        PLAIN,
        {**known, **({"audio": sound} if sound and "audio" not in known else {})},
        rows=_first(*(root / "aist_hdf5" / part / f"{folder.name}.h5" for root in (base, base.parent))),
        faces=_first(folder / "faces"),
        rate=rate,
    )


def _dance(
    base: Path, name: str, footage: Path, poses: Path, reading: PoseReading, known: dict[str, Any], **more: Any
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
    return RawDance(composed(name), footage, poses, reading, audio=audio, **known, **more)


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
