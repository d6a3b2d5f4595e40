"""Videos with sound, written frame by frame: H.264 and AAC in mp4, with BT.709 colours and flags that say so.

A file appears when all of it is written. Nothing depends on the machine: the encoder has one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.building.jobs import RawError
from stagecoach.data.building.raw_files import open_media
from stagecoach.data.encoding.audio import has_audio
from stagecoach.data.files import atomic_file, import_extra

CRF = 18
SOUND_RATE = 48000
FALLBACK = "mpeg4"
PURPOSE = "videos"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sound:
    """The first audio stream of a file, from ``start`` seconds on."""

    path: Path
    start: float = 0.0


class _Samples:
    """The samples of a sound, resampled, as many at a time as are asked for; behind its end there is silence."""

    def __init__(self, sound: Sound) -> None:
        self._sound = sound
        self._blocks = self._decoded()
        self.silence = 0
        # What is wrong with the file shows before the first frame.
        self._held = next(self._blocks, np.zeros((2, 0), np.float32))

    def take(self, count: int) -> np.ndarray:
        """float32 [2, count]."""
        blocks, held = [self._held], self._held.shape[1]
        while held < count and (block := next(self._blocks, None)) is not None:
            blocks.append(block)
            held += block.shape[1]
        if held < count:
            self.silence += count - held
            blocks.append(np.zeros((2, count - held), np.float32))
        samples = np.concatenate(blocks, 1)
        self._held = samples[:, count:]
        return samples[:, :count]

    def close(self) -> None:
        self._blocks.close()

    def _decoded(self) -> Generator[np.ndarray]:
        path = self._sound.path
        if not has_audio(path):
            raise RawError(f"{path}: no audio stream found, expected the sound of the video")
        resampler = _av()[0].AudioResampler(format="fltp", layout="stereo", rate=SOUND_RATE)
        with open_media(path, lambda error: f"its audio is not decodable ({error}); it may be cut short") as container:
            ahead: int | None = None
            for frame in chain(container.decode(audio=0), [None]):
                if frame is not None and ahead is None:  # samples before what is wanted; below 0: silence before it
                    ahead = round((self._sound.start - (frame.time or 0.0)) * SOUND_RATE)
                    if ahead < 0:
                        yield np.zeros((2, -ahead), np.float32)
                for block in resampler.resample(frame):
                    samples = block.to_ndarray()
                    dropped = min(max(ahead or 0, 0), samples.shape[1])
                    ahead = (ahead or 0) - dropped
                    yield samples[:, dropped:]


class VideoWriter:
    """Frames of one video in their order, with the sound that belongs to them; see ``open_video``."""

    def __init__(self, container: Any, rate: Fraction, crf: int, sound: _Samples | None, name: str) -> None:
        self.frames = 0
        self._container, self._rate, self._crf, self._name = container, rate, crf, name
        self._sound, self._written = sound, 0
        self._video: Any = None
        self._audio: Any = None

    def add(self, frame: np.ndarray) -> None:
        """Append one frame, uint8 [H, W, 3] RGB, and the sound up to its end. 4:2:0 video has even sides only: the last
        row or column of an odd one is doubled, which is said once."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(
                f"{self._name}: frame {self.frames} of shape {frame.shape} and dtype {frame.dtype} found, expected "
                "uint8 [H, W, 3]"
            )
        odd = [side % 2 for side in frame.shape[:2]]
        if any(odd):
            frame = np.pad(frame, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
        if self._video is None:
            self._video = self._start(frame)
            if any(odd):
                _log.warning(
                    "%s: frames of odd height or width become %d x %d, the last row or column twice; 4:2:0 video has "
                    "even sides",
                    *(self._name, *frame.shape[:2]),
                )
        if frame.shape[:2] != (self._video.height, self._video.width):
            raise ValueError(
                f"{self._name}: frame {self.frames} of {frame.shape[0]} x {frame.shape[1]} found, expected "
                f"{self._video.height} x {self._video.width} as frame 0"
            )
        av, colours = _av()
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(
            format="yuv420p", dst_colorspace=colours.Colorspace.ITU709, dst_color_range=colours.ColorRange.MPEG
        )
        picture.pts, picture.time_base = self.frames, 1 / self._rate
        self._container.mux(self._video.encode(picture))
        self.frames += 1
        self._add_sound()

    def _start(self, frame: np.ndarray) -> Any:
        av, colours = _av()
        options = {"crf": str(self._crf)}
        codec = "libx264"
        if codec not in av.codecs_available:
            codec, options = FALLBACK, {"qmin": "2", "qmax": "4", "b": str(8 * frame.size)}
            _log.warning(
                "%s: this build of FFmpeg has no libx264, so the video is MPEG-4 Part 2, which browsers do not play; "
                "install PyAV's own wheel (pip install av)",
                self._name,
            )
        stream = self._container.add_stream(codec, rate=self._rate, options=options | {"threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
        context = stream.codec_context
        context.color_range, context.colorspace = colours.ColorRange.MPEG, colours.Colorspace.ITU709
        context.color_primaries, context.color_trc = colours.ColorPrimaries.BT709, colours.ColorTrc.BT709
        if self._sound is not None:
            self._audio = self._container.add_stream("aac", rate=SOUND_RATE, layout="stereo")
        return stream

    def _add_sound(self) -> None:
        """Bring the sound to the end of the last frame."""
        missing = round(self.frames * SOUND_RATE / self._rate) - self._written
        if self._sound is None or missing <= 0:
            return
        samples = np.ascontiguousarray(self._sound.take(missing))
        frame = _av()[0].AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, self._written, Fraction(1, SOUND_RATE)
        self._written += missing
        self._container.mux(self._audio.encode(frame))

    def finish(self) -> None:
        """Write what the encoders hold back."""
        if self._video is None:
            raise ValueError(f"{self._name}: no frame to write, expected at least one")
        self._container.mux(self._video.encode())
        if self._sound is not None:
            self._container.mux(self._audio.encode())
            if self._sound.silence:
                _log.warning(
                    "%s: the sound ends %.2f s before the video; there is silence from there on",
                    *(self._name, self._sound.silence / SOUND_RATE),
                )


@contextmanager
def open_video(
    path: str | Path, rate: float | Fraction, sound: Sound | None = None, crf: int = CRF
) -> Iterator[VideoWriter]:
    """Write an mp4 frame by frame: ``with open_video(path, 16) as video: video.add(frame)``.

    Args:
        rate: frames per second.
        sound: is resampled to 48 kHz stereo from the file itself, cut to the length of the video, and filled up with
            silence where it ends before.
        crf: H.264's quality; 18 looks like the original to most eyes; less is better and larger.

    Raises:
        ValueError: a frame is not as it should be, there was none, or (``RawError``) the sound is not readable.
    """
    path = Path(path)
    av, _ = _av()
    rate = Fraction(rate).limit_denominator(1001)
    with ExitStack() as stack:
        samples = stack.enter_context(closing(_Samples(sound))) if sound else None
        temporary = stack.enter_context(atomic_file(path))
        # By name, since the index moves to the front (faststart), for which FFmpeg opens the file again.
        container = stack.enter_context(av.open(temporary.name, "w", format="mp4", options={"movflags": "+faststart"}))
        writer = VideoWriter(container, rate, crf, samples, str(path))
        yield writer
        writer.finish()


def _av() -> tuple[Any, Any]:
    return import_extra("av", PURPOSE), import_extra("av.video.reformatter", PURPOSE)


def write_video(
    path: str | Path, frames: Iterable[np.ndarray], rate: float | Fraction, sound: Sound | None = None, crf: int = CRF
) -> int:
    """Write all ``frames`` and return how many there were (see ``open_video``)."""
    with open_video(path, rate, sound, crf) as video:
        for frame in frames:
            video.add(frame)
    return video.frames
