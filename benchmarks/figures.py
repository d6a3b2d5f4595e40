"""Figures of docs/: what small models, trained on synthetic data for some minutes, make through the pipelines.

    python benchmarks/figures.py [--only movie] [--output docs]

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

from stagecoach.data.files import atomic_file
from stagecoach.data.pictures import column, resized, titled
from stagecoach.trainer.cli import run_main
from tests.learning.small_movie import LEFT, RIGHT, photo, placed, train_small_movie

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


FIGURES: dict[str, tuple[str, Callable[[Path], np.ndarray]]] = {"movie": ("movie_post_production.png", draw_movie)}


def _panel(picture: np.ndarray) -> np.ndarray:
    return resized(picture, PANEL, PANEL, nearest=True)


def _bytes(picture: np.ndarray) -> np.ndarray:
    """0..1 -> uint8."""
    return picture if picture.dtype == np.uint8 else (picture * 255).round().astype(np.uint8)


def _row(pictures, title: str) -> np.ndarray:
    return titled(np.concatenate([_panel(_bytes(picture)) for picture in pictures], 1), title)


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
