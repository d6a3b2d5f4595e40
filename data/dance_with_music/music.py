"""The music of a dance as rows: EDGE's 35 numbers computed from its sound, or rows that another program has written.

Rows are frames. A file of rows has as many as the clip has frames (at 30 per second; 60 in the HDF5 files of AIST, of
which every second row is taken), within ``TAIL``; it is never stretched, since that would change the tempo.
"""

import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import read_npy
from stagecoach.data.dance_with_music.footage import numbered_files
from stagecoach.data.encoding.audio import BEAT, EDGE_DIM, ONSET, edge_rows, read_audio
from stagecoach.data.files import import_extra

JUKEBOX_DIM = 4800
"""Width of a layer of Jukebox's 5B prior (P. Dhariwal et al., 2020)."""
MusicKind = Literal["edge", "jukebox"]
MUSIC_DIMS = {"edge": EDGE_DIM, "jukebox": JUKEBOX_DIM}

ROWS = "rows of music"
TAIL = 15
"""Rows, poses or frames (half a second) by which one of them may be longer than the others; it is cut to the
shortest. More means that they do not belong together."""
AIST_ROWS_PER_FRAME = 2
SEED_DIM = 39
"""Numbers of the guide's preparation script, which fills up to 4800 with zeros, at 43 rows per second."""
AIST = re.compile(r"g(?P<genre>[A-Z]{2})_s[A-Z]{2}_c[A-Za-z0-9]+_d(?P<subject>\d{2})_m(?P<song>[A-Z]{2}\d)_ch\d{2}")
"""Names of AIST's videos: genre, situation, camera, dancer, song, choreography."""


@dataclass(frozen=True)
class Music:
    """``rows`` float32 [N, Dm], ``beat`` and ``onset`` float32 [N]; ``beats_from``: ``audio`` or ``rows``."""

    rows: np.ndarray
    beat: np.ndarray
    onset: np.ndarray
    beats_from: str


def aist_bpm(song: str) -> float | None:
    """Beats per minute of an AIST song (``KR1``): 80 + 10 times its digit, 110 + 5 times for House (EDGE, from AIST's
    description)."""
    if not re.fullmatch(r"[A-Z]{2}\d", song):
        return None
    return 110 + 5 * int(song[2]) if song.startswith("HO") else 80 + 10 * int(song[2])


def read_music(
    kind: MusicKind, audio: Path | None, start: float | None, rows: Path | None, bpm: float | None, where: str
) -> Music:
    """``audio``: sound or video file, whose sample at ``start`` (None: the first) is frame 0; ``rows``: file or folder
    of rows. Raises ``RawError``; nothing is made up in place of missing music."""
    sound = _sound_rows(audio, start, bpm) if audio else None
    if kind == "jukebox":
        if rows is None:
            raise RawError(
                f"{where}: no rows of {JUKEBOX_DIM} numbers found, expected Jukebox's as .npy or .h5; "
                f"compute them first, or build with --music edge from its sound"
            )
        table = read_rows(rows, JUKEBOX_DIM)
        if sound is None:
            raise RawError(
                f"{where}: rows of Jukebox but no sound found, expected sound too, which beats are found "
                f"in; give the song as a sound file next to them"
            )
        return Music(table, sound[:, BEAT], sound[:, ONSET], "audio")
    if sound is not None:
        return Music(sound, sound[:, BEAT], sound[:, ONSET], "audio")
    if rows is None:
        raise RawError(
            f"{where}: neither sound nor rows of music found, expected a video with sound, a sound file or "
            f"rows; a dance without its music cannot be used"
        )
    table = read_rows(rows, EDGE_DIM)
    return Music(table, (table[:, BEAT] > 0.5).astype(np.float32), table[:, ONSET], "rows")


def read_rows(path: Path, width: int) -> np.ndarray:
    """Rows at 30 per second, float32 [N, width], from .npy [N, width], a folder of .npy [width] per frame, or AIST's
    .h5 with ``music`` [N, width] or [1, N, width] at 60 per second. Raises ``RawError``."""
    if path.is_dir():
        files = numbered_files(path, (".npy",))
        return np.concatenate([_checked(read_npy(files[n], ROWS)[None], files[n], width) for n in sorted(files)])
    if path.suffix == ".npy":
        return _checked(read_npy(path, ROWS), path, width)
    if path.suffix in (".h5", ".hdf5"):
        return _checked(_h5(path), path, width)[::AIST_ROWS_PER_FRAME]
    raise RawError(
        f"{path}: found a {path.suffix or 'nameless'} file, expected rows of music as .npy, .h5 or a folder of .npy"
    )


def read_vector(path: Path, width: int) -> np.ndarray:
    """float32 [width] from .npy. Raises ``RawError``."""
    return _checked(read_npy(path, ROWS).reshape(1, -1), path, width)[0]


def _checked(table: np.ndarray, path: Path, width: int) -> np.ndarray:
    if table.ndim != 2 or table.shape[1] != width or table.dtype.kind not in "fiu" or not len(table):
        raise RawError(
            f"{path}: an array of shape {table.shape} and dtype {table.dtype} found, expected {width} "
            f"numbers per row (--music is one of {MUSIC_DIMS})"
        )
    if not np.isfinite(table).all():
        raise RawError(f"{path}: numbers that are not finite found in the rows of music, expected finite ones")
    if width == JUKEBOX_DIM and not table[:, SEED_DIM:].any():
        raise RawError(
            f"{path}: only the first {SEED_DIM} of {JUKEBOX_DIM} columns hold anything, expected a layer of "
            f"Jukebox; build with --music edge from the sound"
        )
    return table.astype(np.float32)


def _h5(path: Path) -> np.ndarray:
    h5py = import_extra("h5py", "AIST's rows of music", "dance")
    try:
        with h5py.File(path, "r") as file:
            table = file["music"][()]
    except (OSError, KeyError) as error:
        raise RawError(f"{path}: no readable data set 'music' ({error}), expected rows [N, {JUKEBOX_DIM}]") from error
    return table[0] if table.ndim == 3 and len(table) == 1 else table


_lock = threading.Lock()


def _sound_rows(path: Path, start: float | None, bpm: float | None) -> np.ndarray:
    """Segments of one song are prepared side by side in threads, and its rows computed once."""
    with _lock:
        return _cached_rows(path, start, bpm)


@lru_cache(maxsize=8)
def _cached_rows(path: Path, start: float | None, bpm: float | None) -> np.ndarray:
    return edge_rows(read_audio(path, start), bpm)
