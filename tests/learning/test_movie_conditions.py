"""What a trained pipeline paints follows its boxes and its references."""

import numpy as np
import pytest

from tests.learning.small_movie import LEFT, RIGHT, colour_of, placed, train_small_movie

COLOURS = ("red", "blue", "green", "yellow")
SAMPLES = 8


@pytest.fixture(scope="module")
def paint(tmp_path_factory):
    return train_small_movie(tmp_path_factory.mktemp("movie")).painter(SAMPLES)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_moved_box_moves_its_object_and_another_reference_changes_its_colour(paint):
    """Measured, means over the noises: objects of the left box at 0.30 to 0.34 of the width, of the right one at 0.69
    to 0.71 (single pictures 0.27 to 0.38 and 0.64 to 0.74); cosines of the change of colour 0.95 to 0.99 (single
    pictures from 0.93 on); it holds for two other sets of noises too."""
    plain = paint()
    pictures = {(colour, box): paint(placed(colour, box)) for colour in COLOURS for box in (LEFT, RIGHT)}
    where = {key: _centre(found, plain, colour_of(key[0])).mean() for key, found in pictures.items()}
    assert _at(where, lambda box: box)
    assert not _at(where, {LEFT: RIGHT, RIGHT: LEFT}.get)
    changes = {
        (one, other): np.concatenate([_change(pictures[one, box], pictures[other, box], box) for box in (LEFT, RIGHT)])
        for one, other in (("red", "blue"), ("yellow", "blue"), ("red", "green"))
    }
    assert _coloured(changes)
    assert not _coloured({(other, one): change for (one, other), change in changes.items()})


def _centre(pictures, plain, colour):
    """x [SAMPLES] of the middle of what has come nearer to the colour than it is without the object."""
    gained = np.abs(plain - colour).sum(-1) - np.abs(pictures - colour).sum(-1)
    weight = gained.clip(0).sum(1)
    x = (np.arange(weight.shape[1]) + 0.5) / weight.shape[1]
    return (weight * x).sum(1) / weight.sum(1)


def _at(where, box_of):
    """Whether the objects asked for in a box are within 0.15 of the width of the middle of the box given for it."""
    boxes = {key: box_of(key[1]) for key in where}
    return all(abs(x - (boxes[key][0] + boxes[key][2]) / 2) < 0.15 for key, x in where.items())


def _change(one, other, box):
    """How the mean colours in the box differ, [SAMPLES, 3]."""
    height, width = one.shape[1:3]
    inside = np.s_[:, int(box[1] * height) : int(box[3] * height), int(box[0] * width) : int(box[2] * width)]
    return (one[inside] - other[inside]).mean((1, 2))


def _coloured(changes):
    """Whether the colours differ as those of the two references do, by the mean cosine."""
    found = []
    for (one, other), change in changes.items():
        wanted = colour_of(one) - colour_of(other)
        found.append((change @ wanted / np.linalg.norm(change, axis=-1) / np.linalg.norm(wanted)).mean())
    return min(found) > 0.8
