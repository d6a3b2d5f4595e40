"""Music as rows of numbers at a video's frame rate: row k belongs to frame k by construction, never by stretching.

The 35 numbers are those of EDGE (J. Tseng et al., "EDGE: Editable Dance Generation From Music", CVPR 2023; its
published ``baseline_features.py``), in its order: onset strength, 20 MFCCs, 12 chroma CENS, a 1 at onset peaks, a 1 at
beats. With 30 * 512 samples per second and a hop of 512 the rows are the frames of a video of 30 frames per second, and
row k is centred at k / 30 s. librosa puts an onset, and so a beat, at most one row after the sound.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import open_media
from stagecoach.data.files import import_extra

FRAME_RATE = 30
HOP = 512
SAMPLE_RATE = FRAME_RATE * HOP
MFCCS, CHROMAS = 20, 12
EDGE_DIM = 1 + MFCCS + CHROMAS + 1 + 1
ONSET, BEAT = 0, EDGE_DIM - 1
"""Columns of a row."""
MAX_GAP = 0.02
"""Seconds that a container's time stamps may jump between two blocks of samples; more is music that is missing."""
DEFAULT_BPM = 120.0
"""What tempo is looked for first; librosa's own default."""


def has_audio(path: Path) -> bool:
    """Whether a file has an audio stream. Raises ``RawError`` where it cannot be opened."""
    with open_media(path, lambda error: f"not readable as audio or video ({error})") as container:
        return bool(container.streams.audio)


def read_audio(path: Path, start: float | None = None) -> np.ndarray:
    """The first audio stream of a sound or video file, mixed down, float32 [n] at ``SAMPLE_RATE``.

    Sample 0 lies at ``start`` on the container's time axis (a video's first frame, say): what comes before it is cut,
    and where the stream begins later there is silence. None: sample 0 is the stream's first. Raises ``RawError``.
    """
    blocks: list[np.ndarray] = []
    first = end = None
    with open_media(path, lambda error: f"its audio is not decodable ({error}); it may be cut short") as container:
        if not container.streams.audio:
            raise RawError(f"{path}: no audio stream found, expected the music; give a file that has one")
        resampler = import_extra("av", "sound").AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        for frame in container.decode(audio=0):
            if frame.time is not None:
                first = frame.time if first is None else first
                if end is not None and abs(frame.time - end) > MAX_GAP:
                    raise RawError(
                        f"{path}: its audio jumps from {end:.3f} s to {frame.time:.3f} s, expected music without "
                        "gaps; write the file again"
                    )
                end = frame.time + frame.samples / frame.sample_rate
            blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
        blocks += [block.to_ndarray()[0] for block in resampler.resample(None)] if blocks else []
    if not blocks:
        raise RawError(f"{path}: its audio stream holds no samples, expected the music")
    samples = np.concatenate(blocks)
    offset = 0 if start is None or first is None else round((first - start) * SAMPLE_RATE)
    return np.concatenate([np.zeros(offset, np.float32), samples]) if offset > 0 else samples[-offset:]


_compiled = False


@contextmanager
def _compiling_alone() -> Iterator[None]:
    """Until this process has analysed its first sound, let one process of this user do so at a time. numba compiles
    librosa's kernels then, into a cache for all; two that fill it at once crash (numba 0.68.1, librosa 0.11.0)."""
    with ExitStack() as stack:
        if not _compiled:
            lock = Path(tempfile.gettempdir(), f"stagecoach-numba-{os.getuid()}.lock")
            fcntl.flock(stack.enter_context(open(lock, "w")), fcntl.LOCK_EX)
        yield


def edge_rows(samples: np.ndarray, bpm: float | None = None) -> np.ndarray:
    """Samples [n] at ``SAMPLE_RATE`` -> float32 [n // 512 + 1, 35].

    ``bpm`` is where the beat tracker looks first; None estimates it from the onset strength. (EDGE reads it from AIST's
    file names, or estimates it from the file at 22,050 Hz.) Silence has no beats and rows that say so.
    """
    global _compiled
    with _compiling_alone():
        librosa = import_extra("librosa", "rows of music", "dance")
        envelope = librosa.onset.onset_strength(y=samples, sr=SAMPLE_RATE, hop_length=HOP)
        mfcc = librosa.feature.mfcc(y=samples, sr=SAMPLE_RATE, hop_length=HOP, n_mfcc=MFCCS)
        chroma = librosa.feature.chroma_cens(y=samples, sr=SAMPLE_RATE, hop_length=HOP, n_chroma=CHROMAS)
        peaks, beats = np.zeros_like(envelope), np.zeros_like(envelope)
        if envelope.any():
            start = (
                bpm
                or librosa.feature.tempo(
                    onset_envelope=envelope, sr=SAMPLE_RATE, hop_length=HOP, start_bpm=DEFAULT_BPM
                )[0]
            )
            peaks[librosa.onset.onset_detect(onset_envelope=envelope, sr=SAMPLE_RATE, hop_length=HOP)] = 1
            _, found = librosa.beat.beat_track(
                onset_envelope=envelope, sr=SAMPLE_RATE, hop_length=HOP, start_bpm=start, tightness=100
            )
            beats[found] = 1
            _compiled = True  # silence needs no beat tracker
    rows = np.concatenate([envelope[:, None], mfcc.T, chroma.T, peaks[:, None], beats[:, None]], 1)
    return rows.astype(np.float32)
