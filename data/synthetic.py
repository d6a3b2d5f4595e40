"""What the synthetic raw data sets share. A family gives the content: item ``i`` of a seed, in any number.

A set appears when all of it is written, replaces an older synthetic one, and ``synthetic.json`` says how it was made.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stagecoach.data.files import import_extra, replaced_directory, write_json

MARKER = "synthetic.json"
SOUND_RATE = 44100

Steps = Callable[[Iterable[int]], Iterable[int]]
"""Wraps the numbers of the items, to show how far the writer is."""


def write_set(
    directory: str | Path,
    count: int,
    write_item: Callable[[Path, int], Any],
    described: dict[str, Any],
    folders: Sequence[str] = (),
    metadata: str | None = None,
    steps: Steps = iter,
) -> None:
    """Write items 0 to ``count`` - 1 of a synthetic raw data set.

    Args:
        write_item: writes item ``i`` below a folder and returns its entry in the file ``metadata``, if there is one.
        described: what the items depend on, for ``synthetic.json``.
        folders: made before the first item.

    Raises:
        ValueError: ``directory`` holds something else than a synthetic set.
    """
    with replaced_directory(Path(directory), MARKER) as base:
        for folder in folders:
            (base / folder).mkdir()
        entries = [write_item(base, index) for index in steps(range(count))]
        if metadata:
            (base / metadata).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        write_json(base / MARKER, described)


def write_video(path: Path, video: np.ndarray, rate: int, sound: np.ndarray | None = None) -> None:
    """Write uint8 [F, H, W, 3] as H.264 at a quality where compression is not seen, and ``sound`` float32 [n] at
    ``SOUND_RATE`` as AAC; with one thread, so that the file is the same each time."""
    av = import_extra("av", "videos")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "8", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        audio = container.add_stream("aac", rate=SOUND_RATE, layout="mono") if sound is not None else None
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
        if audio is not None and sound is not None:
            frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = SOUND_RATE, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
