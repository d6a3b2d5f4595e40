"""The music of a dance as rows: EDGE's 35 numbers computed from its sound, or rows that another program has written.

Rows are frames. A file of rows has as many as the clip has frames, at 30 per second, 60 in the HDF5 files of AIST, or
the rate that is given, of which the nearest in time are taken. It is never stretched, as that would change the tempo.
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
from stagecoach.data.dance_with_music.footage import nearest_frames, numbered_files
from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.data.encoding.audio import BEAT, EDGE_DIM, ONSET, edge_rows, read_audio
from stagecoach.data.files import import_extra

JUKEBOX_DIM = 4800
"""Width of a layer of Jukebox's 5B prior (P. Dhariwal et al., 2020)."""
ENOUGH, SHIFTED, IN_TIME, ALIKE = 150, 300, 2, 0.7
"""Rows of two sounds that can be compared, by which they are shifted in search of each other, by which they may be off,
and the correlation of their rows from which they are one."""
HEARD = slice(0, 33)
"""Onsets, MFCCs and chroma of EDGE's numbers."""
H5 = (".h5", ".hdf5")
LARGEST = float(np.finfo(np.float16).max)
MusicKind = Literal["edge", "jukebox", "files"]
MUSIC_DIMS = {"edge": EDGE_DIM, "jukebox": JUKEBOX_DIM}

ROWS = "rows of music"
TAIL = 15
"""Rows, poses or frames (half a second) by which one of them may be longer than the others; it is cut to the
shortest. More means that they do not belong together."""
AIST_RATE = 60.0
SEED_DIM = 39
"""Numbers of the guide's preparation script, which fills up to 4800 with zeros, at 43 rows per second."""
AIST = re.compile(r"g(?P<genre>[A-Z]{2})_s[A-Z]{2}_c[A-Za-z0-9]+_d(?P<subject>\d{2})_m(?P<song>[A-Z]{2}\d)_ch\d{2}")
"""Names of AIST's videos: genre, situation, camera, dancer, song, choreography."""


@dataclass(frozen=True)
class Music:
    """``rows`` float32 [N, Dm], ``beat`` and ``onset`` float32 [N]; ``beats_from``: ``audio`` or ``rows``; ``maps``
    float32 [N, C, H, W], pictures of the music."""

    rows: np.ndarray
    beat: np.ndarray
    onset: np.ndarray
    beats_from: str
    maps: np.ndarray | None = None


def aist_bpm(song: str) -> float | None:
    """Beats per minute of an AIST song (``KR1``): 80 + 10 times its digit, 110 + 5 times for House (EDGE, from AIST's
    description)."""
    if not re.fullmatch(r"[A-Z]{2}\d", song):
        return None
    return 110 + 5 * int(song[2]) if song.startswith("HO") else 80 + 10 * int(song[2])


def read_music(
    kind: MusicKind,
    audio: Path | None,
    start: float | None,
    rows: Path | None,
    bpm: float | None,
    where: str,
    shape: tuple[int, ...] | None = None,
    rate: float | None = None,
) -> Music:
    """``audio``: sound or video file, whose sample at ``start`` (None: the first) is frame 0; ``rows``: file or folder
    of rows, ``rate`` per second (None: as ``read_rows`` has it); ``shape`` of a row of kind ``files``, [D], or [C, H,
    W] of pictures, next to which EDGE's rows are computed. Raises ``RawError``; nothing is made up in place of missing
    music."""
    sound = _sound_rows(audio, start, bpm) if audio else None
    if kind == "edge" and sound is None:
        if rows is None:
            raise RawError(
                f"{where}: neither sound nor rows of music found, expected a video with sound, a sound file or "
                f"rows; a dance without its music cannot be used"
            )
        table = read_rows(rows, EDGE_DIM, rate)
        return Music(table, (table[:, BEAT] > 0.5).astype(np.float32), table[:, ONSET], "rows")
    table = None
    if kind != "edge":
        shape = (JUKEBOX_DIM,) if kind == "jukebox" else shape or music_shape(rows or Path(where))
        what = f"rows of {JUKEBOX_DIM} numbers" if kind == "jukebox" else ROWS
        if rows is None:
            raise RawError(
                f"{where}: no {what} found, expected them as .npy or .h5 in music_features; compute them first, or "
                "build with --music edge from its sound"
            )
        table = read_rows(rows, shape, rate)
    if sound is None:
        raise RawError(
            f"{where}: {ROWS} but no sound found, expected sound too, which beats are found in; give the song as a "
            "sound file next to them"
        )
    beats = sound[:, BEAT], sound[:, ONSET], "audio"
    if table is None:
        return Music(sound, *beats)
    return Music(table, *beats) if table.ndim == 2 else Music(sound, *beats, table)


def check_clock(song: Path, offset: float | None, video: Path, start: float, bpm: float | None) -> None:
    """Whether the song from ``offset`` on is what the video's own sound has from ``start`` on, by what their rows
    say of timbre and harmony. Says nothing of sounds that are not alike, and of short ones. Raises ``RawError`` where
    they are, shifted."""
    heard, given = (_sound_rows(*which, bpm)[:, HEARD] for which in ((video, start), (song, offset)))
    count = min(len(heard), len(given))
    if count < ENOUGH:
        return
    one, other = ((x[:count] - x[:count].mean(0)) / (x[:count].std(0) + 1e-6) for x in (heard, given))
    reach = min(SHIFTED, count // 2)
    alike = {}
    for shift in range(-reach, reach + 1):
        mine, its = one[max(-shift, 0) : count - max(shift, 0)], other[max(shift, 0) : count + min(shift, 0)]
        alike[shift] = float((mine * its).mean())
    best = max(alike, key=lambda shift: alike[shift])
    if abs(best) > IN_TIME and alike[best] > ALIKE and alike[0] < ALIKE / 2:
        raise RawError(
            f"{song}: the sound of {video.name} is found {best / FRAME_RATE:+.2f} s from where the song is taken, "
            f"expected them in time; give 'offset': {(offset or 0) + best / FRAME_RATE:.2f} of the dance in dances.json"
        )


def music_shape(path: Path) -> tuple[int, ...]:
    """What a file or folder of rows has per frame: [D], or [C, H, W]. Raises ``RawError``."""
    if path.is_dir():
        files = numbered_files(path, (".npy",))
        shape = read_npy(files[min(files)], ROWS).shape
    else:
        shape = _file(path).shape[1:]
    if len(shape) not in (1, 3) or not all(shape):
        raise RawError(f"{path}: {list(shape)} numbers per frame found, expected [D] or [C, H, W]")
    return shape


def read_rows(path: Path, shape: int | tuple[int, ...], rate: float | None = None) -> np.ndarray:
    """Rows at 30 per second, float32 [N, *shape]: of those in the file the one that is nearest in time.

    ``.npy`` [N, *shape] or a folder of ``.npy`` [*shape], 30 per second where ``rate`` is None; AIST's ``.h5`` with
    ``music`` [N, D] or [1, N, D], 60 per second. Raises ``RawError``.
    """
    shape = (shape,) if isinstance(shape, int) else shape
    if path.is_dir():
        files = numbered_files(path, (".npy",))
        table = np.concatenate([_checked(read_npy(files[n], ROWS)[None], files[n], shape) for n in sorted(files)])
    else:
        table = _checked(_file(path), path, shape)
    rate = rate or (AIST_RATE if path.suffix in H5 else float(FRAME_RATE))
    return table if rate == FRAME_RATE else table[nearest_frames(np.arange(len(table)) / rate, 1 / rate)]


def _file(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return read_npy(path, ROWS)
    if path.suffix in H5:
        return _h5(path)
    raise RawError(
        f"{path}: found a {path.suffix or 'nameless'} file, expected rows of music as .npy, .h5 or a folder of .npy"
    )


def read_vector(path: Path, width: int) -> np.ndarray:
    """float32 [width] from .npy. Raises ``RawError``."""
    return _checked(read_npy(path, ROWS).reshape(1, -1), path, (width,))[0]


def _checked(table: np.ndarray, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if table.shape[1:] != shape or table.dtype.kind not in "fiu" or not len(table):
        raise RawError(
            f"{path}: an array of shape {table.shape} and dtype {table.dtype} found, expected "
            f"{' x '.join(map(str, shape))} numbers per row; --music edge takes {EDGE_DIM}, jukebox {JUKEBOX_DIM}, "
            "files what the first dance has"
        )
    table = table.astype(np.float32)
    bad = ~(np.abs(table) <= LARGEST)  # also what is not a number
    if bad.any():
        row, *place = (int(k) for k in np.argwhere(bad)[0])
        raise RawError(
            f"{path}: {table[(row, *place)]:g} in row {row}, number {place[0] if len(place) == 1 else place}, expected "
            f"finite numbers up to {LARGEST:g}, as the shards hold them in f16; mend or scale them"
        )
    if shape == (JUKEBOX_DIM,) and not table[:, SEED_DIM:].any():
        raise RawError(
            f"{path}: only the first {SEED_DIM} of {JUKEBOX_DIM} columns hold anything, expected a layer of "
            f"Jukebox; build with --music edge from the sound"
        )
    return table


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
