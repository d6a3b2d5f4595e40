"""Requests are read from both formats without a picture; references are cut as the builder cuts them."""

import json

import numpy as np
import pytest
from PIL import Image

from stagecoach.data.building.jobs import RawError
from stagecoach.data.movie_post_production.captions import read_captions
from stagecoach.data.movie_post_production.crops import cut
from stagecoach.data.movie_post_production.painted import BLANK, CROP, reference_sheet
from stagecoach.data.movie_post_production.requests import read_request
from stagecoach.data.pictures import TITLE, read_picture

GUIDE = {
    "global_caption": "a chair in a park",
    "width": 96,
    "height": 64,
    "seed": 7,
    "objects": [
        {
            "object_id": 3,
            "category_name": "chair",
            "bbox": [0.25, 0.5, 0.5, 1],
            "caption": "red",
            "depth_label": "midground",
            "reference": "chair.png#0.5,0,1,0.5",
        },
        {"bbox": [0, 0, 1, 0.25], "caption": "sky"},
    ],
}
PUBLISHED = {
    "prompt": "a chair in a park",
    "width": 1500,
    "height": 1000,
    "annos": [{"bbox": [300, 250, 1200, 850], "category_name": "chair", "caption": "red"}],
}


@pytest.fixture
def write(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "chair.png")
    Image.fromarray(pixels).save(tmp_path / "a#b.png")

    def write(entry):
        (tmp_path / "request.json").write_text(json.dumps(entry))
        return tmp_path / "request.json"

    return write


def test_the_json_of_the_guide_is_read_with_a_reference_of_each_object(write):
    request = read_request(write(GUIDE))
    assert (request.caption, request.size, request.seed) == ("a chair in a park", (96, 64), 7)
    chair, sky = request.objects
    assert (chair.object_id, chair.box, chair.text, chair.depth, chair.depth_given) == (
        3,
        (0.25, 0.5, 0.5, 1.0),
        "chair, red",
        1,
        True,
    )
    assert (sky.object_id, sky.text, sky.depth_given, sky.reference) == (1, "sky", False, None)
    whole = read_picture(chair.reference.picture)
    assert np.array_equal(chair.reference.cut(), np.asarray(whole)[:10, 20:])
    assert np.array_equal(chair.reference.cut((28, 28)), cut(whole, (0.5, 0, 1, 0.5), (28, 28)))


def test_the_json_of_instance_assemble_is_read_with_boxes_in_pixels(write):
    request = read_request(write(PUBLISHED))
    assert (request.caption, request.size, request.seed) == ("a chair in a park", (1500, 1000), None)
    (chair,) = request.objects
    assert chair.box == (0.2, 0.25, 0.8, 0.85)
    assert (chair.text, chair.reference) == ("chair, red", None)


def test_a_file_of_the_raw_layout_is_a_request_whose_references_are_other_pictures(synthetic):
    for picture in read_captions(synthetic)[0]:
        request = read_request(picture.captions)
        assert [item.box for item in request.objects] == [item.box for item in picture.objects]
        for item, raw in zip(request.objects, picture.objects, strict=True):
            if raw.reference.image_id == picture.image_id:
                assert item.reference is None
            else:
                assert (item.reference.picture, item.reference.box) == (raw.reference.image, raw.reference.box)


def test_a_name_with_a_hash_is_a_name_where_there_is_such_a_file(write):
    objects = [GUIDE["objects"][0] | {"reference": name} for name in ("a#b.png", "a#b.png#0,0,0.5,1")]
    for number, width in ((0, 40), (1, 20)):
        (item,) = read_request(write(GUIDE | {"objects": [objects[number]]})).objects
        assert item.reference.cut().shape == (20, width, 3)


def object_of(entry, **change):
    name = "annos" if "annos" in entry else "objects"
    return entry | {name: [entry[name][0] | change]}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], "holds list, expected an object"),
        (GUIDE | {"global_caption": ""}, "'global_caption' is ''"),
        (GUIDE | {"objects": 3}, "'objects' is 3, expected a list"),
        (GUIDE | {"seed": -1}, "'seed' is -1, expected a whole number"),
        (GUIDE | {"width": 0}, "a picture of 0 x 64"),
        (object_of(GUIDE, bbox=[0, 0, 96, 64]), "object 0: 'bbox' is .* divide pixels"),
        (object_of(GUIDE, reference="gone.png"), "gone.png: missing, expected the picture that .*object 0"),
        (object_of(GUIDE, reference="chair.png#0,0,9,9"), "reference 'chair.png#0,0,9,9': 'bbox' is .* in 0..1"),
        (object_of(GUIDE, reference="chair.png#a"), "expected path#x1,y1,x2,y2"),
        (object_of(GUIDE, reference=4), r"'reference' is 4, expected path\[#x1,y1,x2,y2\] or a picture"),
        (object_of(GUIDE, reference=None, ref_image_id="x"), "refers to image 'x', expected"),
        ({**PUBLISHED, "width": None, "height": None}, "no width and height found"),
        (object_of(PUBLISHED, bbox=[0, 0, 1600, 10]), "expected pixels x1 y1 x2 y2 of 1500 x 1000"),
        (object_of(PUBLISHED, bbox=[1, 2, 3]), "expected four finite numbers"),
        (object_of(PUBLISHED, bbox=[30, 2, 3, 9]), "an empty box"),
    ],
)
def test_a_request_that_is_not_as_documented_is_named(write, entry, message):
    path = write(entry)
    with pytest.raises(RawError, match=message) as caught:
        read_request(path)
    assert path.name in str(caught.value) or "missing" in message


def test_references_stand_above_what_was_painted(write):
    chair, sky = read_request(write(GUIDE)).objects
    picture = np.full((64, 96, 3), (10, 200, 30), np.uint8)
    sheet = reference_sheet(picture, [chair.box, sky.box], [chair.reference.cut(), None])
    assert sheet.shape == (2 * (TITLE + CROP), 2 * CROP, 3)
    assert (sheet[TITLE : TITLE + CROP, CROP:] == BLANK).all()
    assert (sheet[-CROP:] == (10, 200, 30)).all()
    assert reference_sheet(picture, [], []).shape == (0, CROP, 3)


@pytest.mark.parametrize("content", [[], {"objects": 3}, {"objects": [1]}])
def test_captions_of_another_picture_that_are_none_are_named(tmp_path, content):
    for name in ("images", "captions"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "x.png")
    (tmp_path / "captions" / "x.json").write_text(json.dumps(content))
    request = tmp_path / "captions" / "y.json"
    request.write_text(json.dumps(object_of(GUIDE, reference=None, ref_image_id="x")))
    with pytest.raises(RawError, match=r"x.json: holds no list of objects, expected the captions of 'x'"):
        read_request(request)
