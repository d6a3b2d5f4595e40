"""What is annotated and by what: videos in a folder, models where they should be. Needs no large package."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import open_media, safe_key, video_stream
from stagecoach.data.files import temporary_name
from stagecoach.data.names import composed

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi")


def check_models(models: Mapping[str, Path | None]) -> None:
    """Raises ``RawError`` where a model that is named does not exist."""
    for role, path in models.items():
        if path is not None and not path.exists():
            raise RawError(
                f"{path}: missing, expected the model of --{role.replace('_', '-')} as a local file or folder"
            )


def find_videos(base: Path) -> list[tuple[str, Path]]:
    """Videos in ``base`` and ``base/videos`` by key, sorted; of one name that in ``base``, of which
    the other is a copy. Raises ``RawError``
    where there is none."""
    found = {
        path.name: path
        for folder in (base / "videos", base)
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in VIDEOS
    }
    if not found:
        raise RawError(f"{base}: no video found, expected {', '.join(VIDEOS)} in it or in {base / 'videos'}")
    return sorted((key_of(path.stem), path) for path in found.values())


def key_of(name: str) -> str:
    """A name as files and samples may be called: itself, or with a hash where it has other letters than those."""
    name = composed(name)
    key = safe_key(name)
    return key if key == name else f"{key}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def frame_rate(video: Path) -> Fraction:
    """Mean frames per second. Raises ``RawError``."""
    with open_media(video, lambda error: f"not readable as a video ({error})") as container:
        return Fraction(video_stream(container, video, "expected frames").average_rate or 24)


def take(source: Path, target: Path) -> None:
    """The same file under another name: a hard link, or a copy where there can be none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    try:
        os.link(source.resolve(), temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
