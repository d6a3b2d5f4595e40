"""Crops of the identity loss: they are those of the cached references, and gradients stay inside their tiles."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stagecoach.data.movie_post_production.crops import cut
from stagecoach.models.movie_post_production.identity.tiles import (
    crop_weights,
    pixel_boxes,
    resample,
    resize_weights,
    tiles,
)

BOXES = [(0.0, 0.0, 1.0, 1.0), (0.13, 0.4, 0.55, 0.93), (0.7, 0.05, 0.95, 0.2), (0.5, 0.5, 0.505, 0.505)]


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((128, 96), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("size", [28, 224])
def test_a_crop_is_that_of_the_cached_reference(picture, size):
    """Enlarged, reduced and by a single pixel: equal to Pillow's crop and resize within its rounding to whole numbers
    after each of two passes."""
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).float()[None]
    boxes = pixel_boxes(torch.tensor([BOXES]), 96, 128)
    found = resample(pixels, *crop_weights(boxes, 96, 128, size))[0].clamp(0, 255)
    for crop, box in zip(found, BOXES, strict=True):
        expected = cut(Image.fromarray(picture), box, (size, size)).astype(np.float32)
        assert np.abs(crop.permute(1, 2, 0).numpy() - expected).max() <= 1.6


def test_weights_equal_the_antialiased_bicubic_of_torch():
    x = torch.rand(1, 2, 40, 50)
    for height, width in ((10, 20), (40, 50), (61, 90)):
        bounds = torch.tensor([[0.0]]), torch.tensor([[40.0]]), torch.tensor([[50.0]])
        rows = resize_weights(bounds[0], bounds[1], height, 40, bounds[0], bounds[1])
        columns = resize_weights(bounds[0], bounds[2], width, 50, bounds[0], bounds[2])
        expected = F.interpolate(x, (height, width), mode="bicubic", antialias=True)
        assert torch.allclose(resample(x, rows, columns)[0, 0], expected[0], atol=2e-5)


def test_a_window_that_fits_is_a_plain_slice_of_the_latent():
    latent = torch.randn(1, 3, 20, 30)
    box = torch.tensor([[[12 / 30, 6 / 20, 15 / 30, 9 / 20]]])
    found = tiles(box, 20, 30, side=10, margin=3)
    # Latents 12..15 and 6..9 and three around them are 9, of a tile of 10 centred on them as whole latents allow.
    expected = latent[:, :, 2:12, 8:18]
    assert torch.equal(resample(latent, found.rows, found.columns)[0], expected)
    assert found.boxes[0, 0].tolist() == [32, 32, 56, 56]


def test_a_box_larger_than_the_window_is_made_smaller_equally_along_both_axes():
    found = tiles(torch.tensor([[[0.0, 0.25, 1.0, 0.75]]]), 32, 32, side=16, margin=0)
    assert found.boxes[0, 0].tolist() == [0, 32, 128, 96]


def test_windows_are_no_larger_than_a_small_latent():
    found = tiles(torch.tensor([[[0.2, 0.2, 0.5, 0.5]]]), 8, 12, side=32, margin=8)
    assert found.rows.shape == (1, 1, 8, 8)
    assert found.columns.shape == (1, 1, 12, 12)
    assert torch.equal(found.rows[0, 0], torch.eye(8))
    assert torch.equal(found.columns[0, 0], torch.eye(12))


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(*[st.floats(0, 1, width=32)] * 4),
    st.integers(4, 40),
    st.integers(4, 40),
    st.integers(2, 40),
    st.integers(0, 9),
)
def test_a_box_lies_inside_its_window_whatever_the_sizes(corners, height, width, side, margin):
    x, y = sorted(corners[:2]), sorted(corners[2:])
    found = tiles(torch.tensor([[[x[0], y[0], x[1], y[1]]]]), height, width, side, margin)
    x1, y1, x2, y2 = found.boxes[0, 0].tolist()
    rows, columns = found.rows.shape[2], found.columns.shape[2]
    assert -1e-3 <= x1 < x2 <= 8 * columns + 1e-3
    assert -1e-3 <= y1 < y2 <= 8 * rows + 1e-3
    assert torch.allclose(found.rows.sum(-1), torch.ones(1, 1, rows), atol=1e-5)
    assert rows == min(side, height)
    assert columns == min(side, width)
