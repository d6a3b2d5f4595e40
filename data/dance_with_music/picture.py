"""What a sample looks like: its stored frame, its poses over time, and the beats below."""

import numpy as np
from PIL import Image, ImageDraw

from stagecoach.data.dance_with_music.drawing import draw_skeleton
from stagecoach.data.dance_with_music.schema import LATENT_STRIDE
from stagecoach.data.dance_with_music.segment import CONFIDENCE_STEPS, POSE_STEPS
from stagecoach.data.pictures import sheet
from stagecoach.data.streaming.dataset import Sample

PANELS = 4
STRIP = 16
"""Height of the strip of beats."""
BACKGROUND, BEAT, ONSET, FACE, SHOWN = (24, 24, 24), (255, 210, 60), (90, 140, 220), (80, 255, 120), (255, 255, 255)


def sample_picture(sample: Sample) -> np.ndarray:
    """The middle frame, then skeletons at times spread over the segment with their face boxes, uint8 [h, w, 3]; below,
    the strength of onsets (blue), beats (yellow) and the times that are shown (white) from its start to its end."""
    arrays = sample.arrays
    frames = len(arrays["pose_xy"])
    middle = frames // 2
    height, width = (size * LATENT_STRIDE for size in arrays["latents"].shape[2:])
    shown = sorted({middle, *(round(p) for p in np.linspace(0, frames - 1, PANELS))})
    blank = np.full((height, width, 3), BACKGROUND, np.uint8)
    panels = [_panel(arrays, k, blank) for k in shown]
    if "frame" in arrays:
        panels.insert(0, _panel(arrays, middle, arrays["frame"]))
    pictures = sheet(panels, len(panels))
    strip = beat_strip(arrays["beat"], arrays["onset"].astype(np.float32), shown, pictures.shape[1])
    return np.concatenate([pictures, strip])


def _panel(arrays: dict[str, np.ndarray], number: int, background: np.ndarray) -> np.ndarray:
    image = draw_skeleton(
        background,
        arrays["pose_xy"][number].astype(np.float64) / POSE_STEPS,
        arrays["pose_conf"][number].astype(np.float64) / CONFIDENCE_STEPS,
    )
    if not arrays["face_valid"][number]:
        return image
    picture = Image.fromarray(image)
    box = arrays["face_box"][number].astype(np.float64) * np.tile([picture.width, picture.height], 2)
    ImageDraw.Draw(picture).rectangle(tuple(box), outline=FACE)
    return np.asarray(picture)


def beat_strip(beat: np.ndarray, onset: np.ndarray, shown: list[int], width: int) -> np.ndarray:
    """A segment from its start to its end, uint8 [16, width, 3]: the strength of onsets [F] (blue), beats [F] (yellow)
    and the frames that are shown (white)."""
    strip = np.full((STRIP, width, 3), BACKGROUND, np.uint8)
    columns = (np.arange(len(beat)) + 0.5) / len(beat) * width
    for column, strength in zip(columns.astype(int), onset / max(float(onset.max()), 1e-6), strict=True):
        strip[STRIP - round(strength * (STRIP - 4)) :, column] = ONSET
    strip[4:, columns[beat > 0].astype(int)] = BEAT
    strip[:3, columns[shown].astype(int)] = SHOWN
    return strip
