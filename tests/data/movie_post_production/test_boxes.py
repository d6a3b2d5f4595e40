"""What four numbers are - corners or width and height, fractions, pixels or thousandths - is checked on the data."""

import json

import numpy as np
import pytest

from stagecoach.data.building.jobs import RawError
from stagecoach.data.movie_post_production.boxes import CONVENTIONS, BoxConvention, read_box
from stagecoach.data.movie_post_production.captions import Boxes, read_captions

SIZE = (640, 480)
TRUE = (0.1, 0.25, 0.6, 0.5)
WRITTEN = {
    ("xyxy", "fraction"): [0.1, 0.25, 0.6, 0.5],
    ("xywh", "fraction"): [0.1, 0.25, 0.5, 0.25],
    ("xyxy", "pixel"): [64, 120, 384, 240],
    ("xywh", "pixel"): [64, 120, 320, 120],
    ("xyxy", "1000"): [100, 250, 600, 500],
    ("xywh", "1000"): [100, 250, 500, 250],
}


def as_written(box, convention: BoxConvention, size) -> list[float]:
    x1, y1, x2, y2 = box
    if convention.format == "xywh":
        x2, y2 = x2 - x1, y2 - y1
    width, height = {"fraction": (1, 1), "pixel": size, "1000": (1000, 1000)}[convention.units]
    return [x1 * width, y1 * height, x2 * width, y2 * height]


@pytest.mark.parametrize(("convention", "numbers"), WRITTEN.items())
def test_each_convention_gives_the_corners_in_fractions(convention, numbers):
    assert read_box(numbers, "here", BoxConvention(*convention), SIZE) == pytest.approx(TRUE)


@pytest.mark.parametrize(
    ("convention", "numbers", "message"),
    [
        (
            ("xyxy", "fraction"),
            [0.5, 0.5, 0.2, 0.3],
            "an empty box, expected x1 < x2 .*; it is one by --box-format xywh",
        ),
        (
            ("xyxy", "fraction"),
            [0, 0, 640, 480],
            "beyond the picture, .*; it is one by --box-format xyxy --box-units pix",
        ),
        (
            ("xywh", "fraction"),
            [0.5, 0.5, 0.9, 0.9],
            "beyond the picture, expected x y width height in 0..1; it is one by",
        ),
        (("xyxy", "pixel"), [0.1, 0.1, 0.9, 0.9], "inside one pixel, expected .* in pixels .*--box-units fraction"),
        (
            ("xyxy", "1000"),
            [0.1, 0.1, 0.9, 0.9],
            "inside one pixel, .* in 0..1000; it is one by .*--box-units fraction",
        ),
        (("xyxy", "fraction"), [0, 0, 9000, 9000], "beyond the picture, expected x1 < x2 and y1 < y2 in 0..1$"),
    ],
)
def test_numbers_that_are_no_box_are_refused_with_what_they_are(convention, numbers, message):
    with pytest.raises(RawError, match=message):
        read_box(numbers, "here", BoxConvention(*convention), SIZE)


@pytest.fixture
def folder(tmp_path):
    """Write pictures whose boxes are as ``truth`` says; all of them in the upper left where ``corner``."""
    from PIL import Image

    def write(truth: BoxConvention, count: int = 12, size=SIZE, corner: bool = False):
        random = np.random.default_rng(0)
        for name in ("images", "captions"):
            (tmp_path / name).mkdir(exist_ok=True)
        for k in range(count):
            Image.new("RGB", size).save(tmp_path / f"images/p{k}.png")
            boxes = []
            for _ in range(3):
                low, high = (
                    random.uniform(0, 0.2 if corner else 0.6, 2),
                    random.uniform(0.25 if corner else 0.2, 0.4, 2),
                )
                boxes.append((*low, *(low + high)))
            objects = [
                {"object_id": n, "caption": "a thing", "bbox": as_written(box, truth, size)}
                for n, box in enumerate(boxes)
            ]
            entry = {"global_caption": "things", "width": size[0], "height": size[1], "objects": objects}
            (tmp_path / f"captions/p{k}.json").write_text(json.dumps(entry))
        return tmp_path

    return write


@pytest.mark.parametrize("truth", CONVENTIONS, ids=str)
@pytest.mark.parametrize("given", CONVENTIONS, ids=str)
def test_a_data_set_that_is_read_by_another_convention_is_refused_with_the_right_one(folder, truth, given, caplog):
    """Also with --skip-bad, which would keep those that happen to be boxes: the set as a whole is refused."""
    raw = folder(truth)
    if given == truth:
        pictures, bad, _ = read_captions(raw, Boxes(given.format, given.units))
        assert (len(pictures), bad, caplog.text) == (12, [], "")
        return
    if (truth.units, given.units) == ("pixel", "1000"):  # pixels of so small a picture are thousandths, too: see below
        return
    with pytest.raises(RawError, match=r"captions: \d+ of 36 boxes are none by --box-format") as caught:
        read_captions(raw, Boxes(given.format, given.units))
    assert str(truth) in str(caught.value)


def test_pixels_taken_for_thousandths_are_said(folder, caplog):
    read_captions(folder(BoxConvention("xyxy", "pixel"), size=(512, 512)), Boxes("xyxy", "1000"))
    assert "none of 36 boxes reaches beyond 0.49 of its picture by --box-format xyxy --box-units 1000" in caplog.text


def test_boxes_that_could_be_corners_or_width_and_height_are_said_unless_a_person_says_which(folder, caplog):
    raw = folder(BoxConvention("xywh"), corner=True)
    assert "all 36 boxes" not in caplog.text
    assert not read_captions(raw, Boxes("xywh"))[1]
    assert not caplog.text
    read_captions(raw)
    expected = "are boxes by --box-format xywh --box-units fraction, too; look at some (preview), and give --box-format"
    assert expected in caplog.text
