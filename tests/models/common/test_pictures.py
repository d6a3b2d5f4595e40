"""Pictures for previews."""

import numpy as np
import torch

from stagecoach.models.common.pictures import TITLE, column, resized, side_by_side, titled, to_uint8


def test_pixels_become_bytes():
    pixels = torch.tensor([-1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 4).expand(2, 3, 5, 4)
    picture = to_uint8(pixels)
    assert picture.shape == (2, 5, 4, 3)
    assert picture[0, 0, :, 0].tolist() == [0, 128, 255, 255]


def test_a_title_stands_above_the_picture():
    picture = np.full((10, 80, 3), 7, np.uint8)
    found = titled(picture, "abc")
    assert np.array_equal(found[TITLE:], picture)
    assert found[:TITLE].min() < 50
    assert found[:TITLE].max() == 255


def test_one_side_decides_the_other():
    picture = np.zeros((20, 40, 3), np.uint8)
    assert resized(picture, width=10).shape == (5, 10, 3)
    assert resized(picture, height=10, nearest=True).shape == (10, 20, 3)
    assert resized(picture, 3, 4).shape == (4, 3, 3)


def test_a_column_is_as_wide_as_its_widest_and_filled_with_white():
    wide, narrow = np.zeros((2, 6, 3), np.uint8), np.ones((3, 4, 3), np.uint8)
    left, right = column([wide, narrow]), column([wide, narrow], right=True)
    assert left.shape == right.shape == (5, 6, 3)
    assert (left[2:, 4:] == 255).all()
    assert (right[2:, :2] == 255).all()
    assert (right[2:, 2:] == 1).all()


def test_pictures_of_a_sample_stand_in_a_row_under_their_titles():
    black, white = -torch.ones(2, 3, 40, 80), torch.ones(2, 3, 40, 60)
    found = side_by_side(["a", "b"], ground_truth=black, predicted=white)
    assert list(found) == ["a", "b"]
    assert found["a"].shape == (40 + TITLE, 140, 3)
    assert (found["a"][TITLE:, :80] == 0).all()
    assert (found["a"][TITLE:, 80:] == 255).all()
    assert (found["b"][:TITLE, :80] != 255).any()
