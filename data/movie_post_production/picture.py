"""What a sample looks like to people: the picture with its boxes, and next to it what is said of them."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw

from stagecoach.data.movie_post_production.schema import DEPTH_LABELS, LATENT_STRIDE
from stagecoach.data.streaming.dataset import Sample

HEIGHT = 320
TEXT_WIDTH, COLUMNS, LINE = 340, 54, 13
COLOURS = ((214, 40, 40), (232, 150, 20), (40, 90, 220))
"""Of boxes, by depth label."""
BLANK = (96, 96, 96)


def sample_picture(sample: Sample) -> np.ndarray:
    """uint8 [h, w, 3]. Without a stored picture the boxes are drawn on grey."""
    _, rows, columns = sample.arrays["latent"].shape
    image = sample.arrays.get("image")
    width = max(round(HEIGHT * columns / rows), 1)
    canvas = Image.new("RGB", (width + TEXT_WIDTH, HEIGHT), "white")
    picture = Image.new("RGB", (width, HEIGHT), BLANK) if image is None else Image.fromarray(image)
    canvas.paste(picture.resize((width, HEIGHT), Image.Resampling.BICUBIC), (0, 0))
    draw = ImageDraw.Draw(canvas)
    # Far boxes first, so that near ones lie over them as the objects do.
    for number in np.argsort(-sample.arrays["depth"].astype(int), kind="stable"):
        x1, y1, x2, y2 = (sample.arrays["boxes"][number] * [width, HEIGHT, width, HEIGHT]).tolist()
        colour = COLOURS[sample.arrays["depth"][number]]
        draw.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=2)
        draw.text((x1 + 4, y1 + 2), str(number), fill="white", stroke_width=2, stroke_fill=colour)
    y = 4
    for text, colour in _lines(sample, rows * LATENT_STRIDE, columns * LATENT_STRIDE):
        for line in textwrap.wrap(text, COLUMNS) or [""]:
            draw.text((width + 8, y), line, fill=colour)
            y += LINE
    return np.asarray(canvas)


def _lines(sample: Sample, height: int, width: int) -> list[tuple[str, tuple[int, int, int]]]:
    black = (0, 0, 0)
    lines = [(f"{sample.key}, {height} x {width}", black), (sample.meta.get("caption", ""), black)]
    described = sample.meta.get("objects") or [{}] * len(sample.arrays["depth"])  # others' shards may tell nothing
    for number, (entry, depth) in enumerate(zip(described, sample.arrays["depth"], strict=True)):
        reference = f", as in {entry['ref_image_id']}" if "ref_image_id" in entry else ""
        guessed = "" if entry.get("depth_given", True) else "?"
        words = entry.get("caption") or entry.get("category", "")
        lines.append((f"{number} {DEPTH_LABELS[depth]}{guessed}: {words}{reference}", COLOURS[depth]))
    dropped = sample.meta.get("dropped", [])
    return lines + ([(f"{len(dropped)} objects left out", BLANK)] if dropped else [])
