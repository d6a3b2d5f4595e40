"""What the families' readers of raw data sets share: files of JSON, numbers, video and sound, keys and splits."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.files import import_extra
from stagecoach.data.format.decode import npy_header
from stagecoach.data.local_files import DamagedError, LocalFile, UnreachableError, is_file
from stagecoach.data.names import composed

SPLITS = ("train", "val")
LONGEST_KEY = 70
"""The longest key in bytes: with a family's ending and a field's name it has to fit into a tar's 100."""


def safe_key(name: str) -> str:
    """``name`` as a sample key may hold it: letters and digits of any script, - and _; composed, so that a Mac's names
    are those of others. Where letters are lost (marks of some scripts, emoji, all of the name) or the name is too long
    for a tar, a hash of it keeps keys apart."""
    name = composed(name)
    key = re.sub(r"[^\w-]+", "_", name)
    lost = re.search(r"[^\x00-\x7f]", re.sub(r"[\w-]", "", name)) or not key.strip("_")
    if not lost and len(key.encode()) <= LONGEST_KEY:
        return key
    mark = f"-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
    return key.encode()[: LONGEST_KEY - len(mark)].decode(errors="ignore").strip("_") + mark


def check_split(entry: dict[str, Any], where: str) -> str | None:
    """The split that an entry of raw metadata gives, None where it gives none. Raises ``RawError`` for another word."""
    if entry.get("split") not in (None, *SPLITS):
        raise RawError(f"{where}: 'split' is {entry['split']!r}, expected 'train', 'val' or none")
    return entry.get("split")


def read_bytes(path: Path, expected: str) -> bytes:
    """A whole raw file. Raises ``RawError``; a storage that gives no answer is ``UnreachableError`` and no bad item."""
    try:
        with LocalFile(path) as file:
            return file.read(0, file.size)
    except DamagedError as error:
        cause = getattr(error.__cause__, "strerror", None) or str(error).removeprefix(f"{path}: ")
        raise RawError(f"{path}: not readable ({cause}), expected {expected}") from error


def read_text(path: Path, expected: str) -> str:
    """A text file in UTF-8 or UTF-16, with or without a byte order mark (which is left out), lines ending in "\\n".
    Raises ``RawError``; ``UnreachableError`` as ``read_bytes``."""
    data = read_bytes(path, expected)
    try:
        return data.decode(json.detect_encoding(data)).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise RawError(
            f"{path}: not readable as text ({error}), expected {expected} in UTF-8 or UTF-16; save it so"
        ) from error


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file, encoded as ``read_text`` takes it. Raises ``RawError``."""
    try:
        return json.loads(read_bytes(path, expected))
    except RawError:
        raise
    except UnreachableError:
        raise
    except (ValueError, RecursionError) as error:
        raise RawError(f"{path}: no valid JSON ({error}), expected {expected}") from error


def read_npy(path: Path, expected: str) -> np.ndarray:
    """The numbers of a .npy file. Not through ``np.load``, which is not to be called in threads (``npy_header``)."""
    try:
        data = memoryview(read_bytes(path, expected))
        start, dtype, shape, fortran = npy_header(data)
        return np.frombuffer(data, dtype, prod(shape), start).reshape(shape, order="F" if fortran else "C")
    except RawError:
        raise
    except UnreachableError:
        raise
    except (ValueError, TypeError) as error:
        raise RawError(f"{path}: not a .npy file of numbers ({error}), expected {expected}") from error


@contextmanager
def open_media(path: Path, failed: Callable[[Exception], str]) -> Iterator[Any]:
    """The container (of av) of a file with video or sound. Raises ``RawError``, saying what ``failed`` makes of an
    error, for what goes wrong inside the block."""
    av = import_extra("av", "video and sound")
    if path.exists() and not is_file(path):  # the library would wait for the writer of a pipe
        raise RawError(f"{path}: no regular file, expected video or sound; remove what lies there")
    try:
        with av.open(str(path)) as container:
            yield container
    except (av.FFmpegError, OSError) as error:
        raise RawError(f"{path}: {failed(error)}") from error


def video_stream(container: Any, path: Path, expected: str) -> Any:
    """The first video stream that is no cover picture. Raises ``RawError`` where there is none."""
    streams = container.streams
    cover_picture = import_extra("av.stream", "video and sound").Disposition.attached_pic
    pictures = [stream for stream in streams.video if not stream.disposition & cover_picture]
    if pictures:
        return pictures[0]
    if streams.audio:
        cover = " and a cover picture" if streams.video else ""
        raise RawError(f"{path}: only sound{cover} found, no video, {expected}; give the file with the pictures")
    raise RawError(f"{path}: no video found, {expected}; give a file with pictures")
