"""A song to dance to: its rows of music, its beats, and how many frames it lasts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.music import music_shape, read_rows
from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.data.encoding.audio import BEAT, EDGE_DIM, HOP, ONSET, edge_rows, read_audio


@dataclass(frozen=True)
class Track:
    """A part of a song, frame by frame at ``rate`` per second: ``rows`` float32 [F, Dm], ``beat`` bool [F] and
    ``onset`` float32 [F]; ``maps``: pictures of the music [F, C, H, W]. ``start``: seconds of frame 0 in
    the ``path``."""

    path: Path
    start: float
    rate: float
    rows: np.ndarray
    beat: np.ndarray
    onset: np.ndarray
    maps: np.ndarray | None = None

    @property
    def frames(self) -> int:
        return len(self.rows)

    def beats(self) -> dict[str, Any]:
        """What ``beats.json`` says: times of the beats in seconds from frame 0, their frames, and the tempo in beats
        per minute (None for fewer than two)."""
        frames = np.flatnonzero(self.beat)
        steps = np.diff(frames)
        tempo = None if not len(steps) else round(60 * self.rate / float(np.median(steps)), 2)
        return {
            "fps": self.rate,
            "frames": self.frames,
            "start": self.start,
            "tempo": tempo,
            "beats": [round(k / self.rate, 4) for k in frames.tolist()],
            "beat_frames": frames.tolist(),
        }


def read_track(
    path: Path,
    start: float = 0.0,
    seconds: float | None = None,
    stride: int = 1,
    width: int = EDGE_DIM,
    rows: Path | None = None,
    maps: Path | None = None,
) -> Track:
    """The ``seconds`` (None: the rest) of a sound or video file from second ``start`` on, every ``stride``-th frame of
    30 per second: round(seconds * rate) of them. ``start`` is on the
    file's own time axis.

    Rows of ``width`` 35 are computed from the sound as the builder does; others are read from the file or folder
    ``rows``, whose row 0 is the song's first; pictures of the music from ``maps`` likewise. Raises ``RawError``.
    """
    per_second = FRAME_RATE * HOP
    samples = read_audio(path, start)
    wanted = len(samples) if seconds is None else round(seconds * per_second)
    if start < 0 or not len(samples) or not 0 < wanted <= len(samples) + per_second // 2:
        raise RawError(
            f"{path}: {'the rest' if seconds is None else f'{seconds:g} s'} from second {start:g} on asked for, "
            f"expected a part of the {len(samples) / per_second:.2f} s that there are"
        )
    samples = samples[:wanted]
    rate = FRAME_RATE / stride
    count = max(round(len(samples) / per_second * rate), 1)
    heard = edge_rows(samples)
    table = heard
    if width != EDGE_DIM:
        if rows is None:
            raise RawError(
                f"{path}: the network hears {width} numbers per frame, expected a file of such rows at {FRAME_RATE} "
                "per second next to the song; compute them as for the shards"
            )
        table = _part(rows, width, start, (count - 1) * stride + 1, path)
    pictures = None if maps is None else _part(maps, music_shape(maps), start, (count - 1) * stride + 1, path)
    beat = np.zeros(count, bool)
    frames = np.flatnonzero(heard[:, BEAT]) // stride
    beat[frames[frames < count]] = True
    onset = heard[::stride][:count, ONSET]
    pictures = None if pictures is None else pictures[::stride][:count]
    return Track(path, start, rate, table[::stride][:count], beat, onset, pictures)


def _part(path: Path, shape: int | tuple[int, ...], start: float, count: int, song: Path) -> np.ndarray:
    """Rows from second ``start`` on, at least ``count``. Raises ``RawError``."""
    table = read_rows(path, shape)[round(start * FRAME_RATE) :]
    if len(table) < count:
        raise RawError(
            f"{path}: {len(table)} rows from second {start:g} on found, expected {count} for the "
            f"{count / FRAME_RATE:.2f} s of {song}"
        )
    return table
