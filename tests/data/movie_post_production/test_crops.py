"""A picture is scaled and cropped, never squashed, and its boxes go along."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stagecoach.data.building.jobs import RawError
from stagecoach.data.movie_post_production.crops import MIN_VISIBLE, FrameCrop, cut
from stagecoach.data.pictures import choose_size, parse_sizes, shapes_of_area

sides = st.integers(32, 120)
sizes = st.tuples(st.sampled_from([32, 48, 64]), st.sampled_from([32, 48, 64]))


def ramp(height: int, width: int) -> Image.Image:
    """A picture whose red and green tell the place: resampling leaves a ramp a ramp."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray((np.stack([x, y, x], -1) * 255).round().astype(np.uint8))


@settings(max_examples=60, deadline=None)
@given(sides, sides, sizes, st.floats(0.2, 0.8), st.floats(0.2, 0.8))
def test_a_box_lies_on_the_same_content_before_and_after(height, width, size, x, y):
    crop = FrameCrop.of(height, width, size)
    box = crop.box((x - 0.05, y - 0.05, x + 0.05, y + 0.05))
    if box is None or min(box) <= 0 or max(box) >= 1:
        return
    place = (box[0] + box[2]) / 2 * size[1], (box[1] + box[3]) / 2 * size[0]
    column, row = int(place[0]), int(place[1])
    if not (2 < column < size[1] - 3 and 2 < row < size[0] - 3):
        return
    left, top, right, bottom = crop.frame
    found = crop.image(ramp(height, width))[row, column, :2] / 255
    expected = (left + (column + 0.5) / size[1] * (right - left), top + (row + 0.5) / size[0] * (bottom - top))
    assert found == pytest.approx(expected, abs=0.008)
    assert x == pytest.approx(left + place[0] / size[1] * (right - left))
    assert y == pytest.approx(top + place[1] / size[0] * (bottom - top))


@given(sides, sides, sizes)
def test_the_crop_is_the_largest_of_its_shape(height, width, size):
    left, top, right, bottom = FrameCrop.of(height, width, size).frame
    assert (right - left) * width / ((bottom - top) * height) == pytest.approx(size[1] / size[0])
    assert max(right - left, bottom - top) == pytest.approx(1)
    assert left + right == pytest.approx(1)


@given(sides, sides, sizes, st.lists(st.floats(0, 1), min_size=4, max_size=4, unique=True))
def test_a_box_is_kept_while_half_of_it_is_seen(height, width, size, values):
    (x1, x2), (y1, y2) = sorted(values[:2]), sorted(values[2:])
    crop = FrameCrop.of(height, width, size)
    left, top, right, bottom = crop.frame
    seen = max(min(x2, right) - max(x1, left), 0) * max(min(y2, bottom) - max(y1, top), 0)
    part = seen / ((x2 - x1) * (y2 - y1)) if (x2 - x1) * (y2 - y1) > 1e-9 else None
    if part is None or abs(part - MIN_VISIBLE) < 1e-6:
        return
    box = crop.box((x1, y1, x2, y2))
    assert (box is not None) == (part > MIN_VISIBLE)
    if box:
        assert 0 <= min(box) <= max(box) <= 1
        back = crop.uncropped(box)
        assert back == pytest.approx((max(x1, left), max(y1, top), min(x2, right), min(y2, bottom)), abs=1e-9)


def test_squashing_keeps_every_box():
    crop = FrameCrop.squash((64, 32))
    assert crop.box((0.1, 0.2, 0.3, 1.0)) == (0.1, 0.2, 0.3, 1.0)
    assert crop.image(ramp(40, 40)).shape == (64, 32, 3)


def test_sizes_are_of_the_area_and_of_whole_tokens():
    shapes = shapes_of_area(1024)
    assert (1024, 1024) in shapes
    assert (768, 1360) in shapes
    assert len(shapes) == 9
    assert all(h % 16 == w % 16 == 0 and 0.95 < h * w / 1024**2 < 1.05 for h, w in shapes)
    assert parse_sizes(["64x96", "64x96", "32"]) == [(64, 96), *shapes_of_area(32)]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("64x", "'64x' found, expected HEIGHTxWIDTH"),
        ("-3", "'-3' found"),
        ("65x100", "65x100 found, expected multiples of 16 .*; take 64x96"),
        ("0x16", "0x16 found, expected multiples of 16 .*; take 16x16"),
    ],
)
def test_a_size_that_flux_cannot_take_is_named(word, message):
    with pytest.raises(ValueError, match=message):
        parse_sizes([word])


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (500, 500, (64, 64)),
        (400, 640, (64, 96)),
        (640, 400, (96, 64)),
        (90, 200, (64, 96)),
        (130, 130, (128, 128)),
        (50, 50, (64, 64)),
    ],
)
def test_a_picture_takes_the_size_of_its_shape_and_is_enlarged_last(height, width, expected):
    given = [(64, 64), (64, 96), (96, 64)] + ([(128, 128)] if height == 130 else [])
    assert choose_size(height, width, given, "here") == expected


def test_a_picture_without_detail_for_its_size_is_refused():
    with pytest.raises(RawError, match=r"a\.png: 31 x 40 pixels found, expected at least 1/2 of 64 x 96"):
        choose_size(31, 40, [(64, 96)], "a.png")


@pytest.mark.parametrize("box", [(0.5, 0.5, 0.5001, 0.5001), (0.999, 0.0, 1.0, 1.0), (0.0, 0.9999, 1.0, 1.0)])
def test_a_crop_is_never_of_less_than_a_pixel(box):
    assert cut(ramp(40, 40), box, (28, 28)).shape == (28, 28, 3)


def test_crops_are_those_of_torchs_antialiased_bicubic():
    """So that the identity loss, which crops with gradients, sees what the references saw."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3)).astype(np.uint8))
    box = (10 / 70, 9 / 90, 60 / 70, 81 / 90)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None, :, 9:81, 10:60].float()
    expected = torch.nn.functional.interpolate(pixels, (28, 28), mode="bicubic", antialias=True, align_corners=False)
    found = torch.from_numpy(cut(picture, box, (28, 28)).copy()).permute(2, 0, 1).float()
    assert (found - expected[0].clamp(0, 255)).abs().max() < 1.5
