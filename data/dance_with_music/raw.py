"""What is known of a dance before its files are read, and the optional ``dances.json`` that says more of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import check_split, read_json, safe_key
from stagecoach.data.dance_with_music.music import AIST, aist_bpm
from stagecoach.data.dance_with_music.poses import PLAIN, PoseReading

METADATA = "dances.json"
TEXTS = ("song", "subject", "genre", "split", "audio")
LONGEST_OFFSET = 3600
"""Seconds."""
SOUNDS = (".wav", ".mp3", ".m4a", ".flac", ".ogg", ".mp4")


@dataclass(frozen=True)
class Reference:
    """A picture of the dancer. ``pose``: JSON of one frame, which says where the face is; ``embedding``: ArcFace's 512
    numbers, not normalised, as insightface gives them."""

    picture: Path
    pose: Path | None = None
    embedding: Path | None = None


@dataclass(frozen=True)
class RawDance:
    """One dance. ``footage``: a video or a folder of pictures, ``rate`` pictures per second of a folder; ``reading``
    of its poses; ``audio``: a sound file or the video; ``rows``: precomputed rows of music; ``faces``: a folder of face
    masks, one per frame; ``offset``: seconds of a sound file at the first frame."""

    name: str
    footage: Path
    poses: Path
    reading: PoseReading = PLAIN
    rate: float = 30.0
    audio: Path | None = None
    rows: Path | None = None
    faces: Path | None = None
    reference: Reference | None = None
    song: str | None = None
    subject: str | None = None
    genre: str | None = None
    bpm: float | None = None
    offset: float = 0.0
    split: str | None = None

    @property
    def key(self) -> str:
        """The name as a sample key may hold it."""
        return safe_key(self.name)


def read_metadata(base: Path) -> dict[str, dict[str, Any]]:
    """``base/dances.json`` by dance: an object ``{name: {...}}`` or a list of ``{"id": name, ...}``, each with any of
    song, subject, genre, split, audio (a path below ``base``), offset, bpm. Without the file, nothing. Raises
    ``RawError``."""
    path = base / METADATA
    if not path.exists():
        return {}
    content = read_json(path, "what is known of each dance")
    if isinstance(content, list):
        if not all(isinstance(entry, dict) and isinstance(entry.get("id"), str) for entry in content):
            raise RawError(f"{path}: an entry without 'id' found, expected the name of a dance in each")
        names = [entry["id"] for entry in content]
        if len(set(names)) < len(names):
            raise RawError(
                f"{path}: {next(n for n in names if names.count(n) > 1)!r} is listed twice, expected each dance once"
            )
        content = {entry["id"]: entry for entry in content}
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise RawError(
            f"{path}: holds neither a list of {{id, song, subject, ...}} nor an object of such entries by "
            f"name, expected one of them"
        )
    return content


def described(base: Path, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """What an entry of the metadata, or else the name of an AIST video, says of a dance, as ``RawDance`` takes it."""
    where = f"{base / METADATA}: entry {name!r}"
    for field in TEXTS:
        if not isinstance(entry.get(field), str | None):
            raise RawError(f"{where}: {field!r} is {entry[field]!r}, expected a text")
    bpm = entry.get("bpm")
    if bpm is not None and not (isinstance(bpm, int | float) and 20 <= bpm <= 400):
        raise RawError(f"{where}: 'bpm' is {bpm!r}, expected beats per minute from 20 to 400")
    offset = entry.get("offset", 0.0)
    if not isinstance(offset, int | float) or not abs(offset) < LONGEST_OFFSET:
        raise RawError(f"{where}: 'offset' is {offset!r}, expected the second of its song at which the video starts")
    check_split(entry, where)
    match = AIST.fullmatch(name)
    known = {**(match.groupdict() if match else {}), **{field: entry[field] for field in TEXTS if entry.get(field)}}
    if "audio" in known:
        known["audio"] = base / known["audio"]
        if not known["audio"].is_file():
            raise RawError(f"{known['audio']}: missing, expected the sound of {where}")
    if bpm is None and match:
        bpm = aist_bpm(match["song"])
    return {**known, "bpm": bpm, "offset": float(offset)}


def sound_beside(base: Path, name: str) -> Path | None:
    """``audio/<name>.wav`` or the like below ``base``. Raises ``RawError`` where there are several."""
    found = [path for suffix in SOUNDS if (path := base / "audio" / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        raise RawError(
            f"{found[0]} and {found[1].name} are both there, expected one song of {name!r}; remove the other"
        )
    return found[0] if found else None
