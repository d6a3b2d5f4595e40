"""Short videos that trackers and pages show: GIF, which TensorBoard, W&B and every browser play without a decoder."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Video:
    """``frames`` uint8 [F, H, W, 3], ``rate`` of them per second."""

    frames: np.ndarray
    rate: float


def encode_gif(video: Video) -> bytes:
    """An endless GIF. Its clock ticks in hundredths of a second, so that 16 frames per second are shown as 16.7, 30 as
    33.3."""
    pictures = [Image.fromarray(frame) for frame in video.frames]
    file = BytesIO()
    pictures[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=max(round(100 / video.rate), 2) * 10,
        loop=0,
    )
    return file.getvalue()
