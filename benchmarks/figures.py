"""Figures of docs/: what small models, trained on synthetic data for some minutes, make through the pipelines.

    python benchmarks/figures.py [--only movie|dance|world] [--output docs]

The models are those of the tests in tests/learning, which measure what the figures show.
"""

import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from stagecoach.data.dance_with_music.drawing import draw_skeleton
from stagecoach.data.dance_with_music.picture import BACKGROUND
from stagecoach.data.dance_with_music.schema import FRAME_RATE
from stagecoach.data.files import atomic_file
from stagecoach.data.pictures import column, resized, titled
from stagecoach.trainer.cli import run_main
from tests.learning.small_dance import speed, train_small_dance, unseen
from tests.learning.small_movie import LEFT, RIGHT, photo, placed, train_small_movie
from tests.learning.small_world import train_small_world
from tests.tiny_dance import make_tiny_dance

PANEL = 96
COLOURS = 128
"""Of a palette: a figure takes a third of its size in full colour."""


def draw_movie(folder: Path) -> np.ndarray:
    """A row for each reference: pictures of three noises with the box on the left, then on the right."""
    paint = train_small_movie(folder).painter(3, steps=28)
    rows = []
    for colour in ("red", "blue", "green", "yellow"):
        sides = [_row(paint(placed(colour, box)), title) for box, title in ((LEFT, "box left"), (RIGHT, "box right"))]
        rows.append(np.concatenate([titled(_panel(photo(colour)), "reference"), *sides], 1))
    return column(rows)


def draw_dance(folder: Path) -> np.ndarray:
    """A photo, and what is danced to a song from a frame on and from a later one: poses, speed of the body."""
    data = make_tiny_dance(folder / "data", 64)
    dance = train_small_dance(folder / "run", data, "demo").dancer(folder, 0, 5.0)
    rows = [titled(_panel(unseen(0).portrait), "photo")]
    for first in (20, 26):
        made = dance(first, 100, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
        shown = np.linspace(0, 99, 9).round().astype(int)
        blank = np.full((PANEL, PANEL, 3), BACKGROUND, np.uint8)
        pose = made.pose.double().numpy()
        title = f"song from {first / FRAME_RATE:.2f} s"
        rows.append(_row([draw_skeleton(blank, pose[k, :, :2], pose[k, :, 2]) for k in shown], title))
        rows.append(_bars(speed(made.pose).numpy(), rows[-1].shape[1]))
    return column(rows)


def draw_world(folder: Path) -> np.ndarray:
    """Rows of frames of three noises, the camera turned left, then right."""
    world = train_small_world(folder)
    rows = []
    for side, degrees in (("left", -22), ("right", 22)):
        for film in world.films(f"pan:degrees={degrees}", 3):
            frames = np.concatenate([resized(_bytes(film[k]), width=2 * PANEL, nearest=True) for k in (0, 4, 8)], 1)
            rows.append(titled(frames, f"camera turned {side}: frames 0, 4, 8"))
    return column(rows)


FIGURES: dict[str, tuple[str, Callable[[Path], np.ndarray]]] = {"movie": ("movie_post_production.png", draw_movie)}


def _panel(picture: np.ndarray) -> np.ndarray:
    return resized(picture, PANEL, PANEL, nearest=True)


def _bytes(picture: np.ndarray) -> np.ndarray:
    """0..1 -> uint8."""
    return picture if picture.dtype == np.uint8 else (picture * 255).round().astype(np.uint8)


def _row(pictures, title: str) -> np.ndarray:
    return titled(np.concatenate([_panel(_bytes(picture)) for picture in pictures], 1), title)


def _bars(values: np.ndarray, width: int, height: int = 32) -> np.ndarray:
    """uint8 [height, width, 3]: a bar for each value, the largest as high as the picture."""
    tall = (values / values.max() * height).round()
    bars = np.where(np.arange(height)[::-1, None, None] < tall[None, :, None], (235, 120, 40), BACKGROUND)
    return resized(bars.astype(np.uint8), width, height, nearest=True)


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=FIGURES, help="one of them")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "docs")
    options = parser.parse_args()
    for name in [options.only] if options.only else FIGURES:
        file_name, draw = FIGURES[name]
        with tempfile.TemporaryDirectory(prefix="stagecoach-figures-") as folder:
            picture = draw(Path(folder))
        with atomic_file(options.output / file_name) as file:
            Image.fromarray(picture).quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return 0


if __name__ == "__main__":
    run_main(main)
