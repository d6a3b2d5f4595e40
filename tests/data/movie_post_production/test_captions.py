"""The guide's layout is read as it is; what is not as documented is named, never mended in silence."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.data.building.jobs import RawError
from stagecoach.data.movie_post_production.captions import read_captions
from stagecoach.data.movie_post_production.objects import OUTSIDE, guess_depth, read_box


def first_error(raw) -> str:
    """What is said first: of the picture itself, before what refers to it."""
    _, bad, _ = read_captions(raw)
    assert bad
    return str(bad[0][1])


def test_pictures_objects_and_references_are_those_of_the_files(synthetic):
    pictures, bad, names = read_captions(synthetic)
    assert not bad
    assert names == [f"scene_{i:05d}.json" for i in range(8)]
    for number, picture in enumerate(pictures):
        entry = json.loads((synthetic / "captions" / names[number]).read_text())
        assert picture.key == picture.image_id == f"scene_{number:05d}"
        assert picture.caption == entry["global_caption"]
        assert [list(o.box) for o in picture.objects] == [o["bbox"] for o in entry["objects"]]
        partner = pictures[number ^ 1]
        first, *others = picture.objects
        assert (first.reference.image_id, first.reference.object_id) == (partner.image_id, 0)
        assert (first.reference.image, first.reference.box) == (partner.image, partner.objects[0].box)
        assert all(o.reference.image == picture.image and o.reference.box == o.box for o in others)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("global_caption"), "'global_caption' is None, expected a text"),
        (lambda e: e.update(global_caption=" "), "'global_caption' is ' '"),
        (lambda e: e.update(objects=[]), r"'objects' is \[\], expected a list of at least one"),
        (lambda e: e.update(objects={}), "'objects' is {}"),
        (lambda e: e.update(image_id="other"), "image_id is 'other', expected the file's name 'scene_00007'"),
        (lambda e: e.update(split="test"), "'split' is 'test'"),
        (lambda e: e.update(width=0), "a picture of 0 x 64"),
        (lambda e: e.update(width="w"), "'width' is 'w'"),
        (lambda e: e["objects"].append(3), "holds int, expected an object"),
        (lambda e: e["objects"][0].update(object_id=-1), "object 0: 'object_id' is -1, expected a whole number"),
        (lambda e: e["objects"][1].update(object_id=0), "object 1 has the object_id 0 of another one"),
        (lambda e: e["objects"][0].update(depth_label="near"), "'depth_label' is 'near', expected one of"),
        (lambda e: e["objects"][0].update(caption="", category_name=None), "expected texts, of which one may be empty"),
        (lambda e: e["objects"][0].pop("bbox"), "'bbox' is None, expected four finite numbers"),
        (lambda e: e["objects"][0].update(bbox=[0, 0, 1]), r"'bbox' is \[0, 0, 1\], expected four"),
        (lambda e: e["objects"][0].update(bbox=[0, 0, 1, float("nan")]), "expected four finite numbers"),
        (lambda e: e["objects"][0].update(bbox=[0, 0, 640, 480]), "expected numbers in 0..1; divide pixels"),
        (lambda e: e["objects"][0].update(bbox=[0.5, 0.5, 0.2, 0.9]), "an empty box, expected x1 < x2"),
        (lambda e: e["objects"][0].update(bbox=[0.5, 0.5, 0.5, 0.9]), "an empty box"),
        (lambda e: e["objects"][0].update(bbox=[1.01, 0.5, 1.04, 0.9]), "an empty box"),
        (lambda e: e["objects"][0].update(ref_object_id="a"), "'ref_object_id' is 'a'"),
        (lambda e: e["objects"][0].update(ref_object_id=77), "object 0 refers to object 77 of image 'scene_00006'"),
        (
            lambda e: e["objects"][0].update(ref_image_id="gone"),
            "refers to object 0 of image 'gone', expected one that",
        ),
    ],
)
def test_a_caption_file_that_is_not_as_documented_is_named(raw, edit, change, message):
    path = edit(raw, 7, change)
    with pytest.raises(RawError, match=message) as caught:
        raise RawError(first_error(raw))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [("{", "no valid JSON"), ("[]", "holds list, expected an object")])
def test_a_caption_file_that_is_no_object_is_named_and_the_others_are_kept(raw, content, message):
    (raw / "captions/scene_00007.json").write_text(content)
    pictures, bad, names = read_captions(raw)
    assert (len(pictures), len(bad), len(names)) == (6, 2, 8)
    assert message in str(bad[0][1])
    assert "refers to object 0 of image 'scene_00007'" in str(bad[1][1]), "its partner has lost its reference"


def test_a_missing_picture_is_named(raw):
    (raw / "images/scene_00007.png").unlink()
    assert "images/scene_00007.png: missing" in first_error(raw)


def test_a_folder_without_captions_is_an_error(tmp_path):
    with pytest.raises(RawError, match="captions: no caption file found"):
        read_captions(tmp_path)


def test_pictures_may_have_other_suffixes_and_names_that_no_tar_takes(raw):
    for old, new in (("scene_00006", "a.b c"), ("scene_00007", "a_b_c")):
        shutil.move(raw / f"images/{old}.png", raw / f"images/{new}.webp")
        text = (raw / f"captions/{old}.json").read_text()
        (raw / f"captions/{old}.json").unlink()
        text = text.replace("scene_00006", "a.b c").replace("scene_00007", "a_b_c")
        (raw / f"captions/{new}.json").write_text(text)
    keys = [p.key for p in read_captions(raw)[0]]
    assert len(set(keys)) == 8
    assert "a_b_c" in keys
    assert any(key.startswith("a_b_c-") for key in keys)


def test_a_reference_may_name_another_object_of_the_same_picture(raw, edit):
    edit(raw, 6, lambda e: e["objects"][0].update(ref_image_id="scene_00006", ref_object_id=1))
    picture = read_captions(raw)[0][6]
    assert picture.objects[0].reference.box == picture.objects[1].box
    assert picture.objects[0].reference.image == picture.image


@pytest.mark.parametrize(
    ("box", "label"),
    [
        ((0.0, 0.4, 0.5, 0.7), 0),
        ((0.0, 0.75, 0.01, 0.76), 0),
        ((0.5, 0.5, 0.52, 0.52), 2),
        ((0.4, 0.1, 0.6, 0.3), 2),
        ((0.4, 0.4, 0.6, 0.6), 1),
        ((0.0, 0.0, 0.9, 0.2), 0),
    ],
)
def test_a_missing_depth_label_follows_the_guides_rule(raw, edit, box, label):
    """§3.1: foreground for an area above 0.1 or a centre below 0.7 of the height, else background for an area below
    0.01 or a centre above 0.3, else midground."""
    assert guess_depth(box) == label
    edit(raw, 7, lambda e: e["objects"][1].update(bbox=list(box), depth_label=None))
    found = read_captions(raw)[0][7].objects[1]
    assert (found.depth, found.depth_given) == (label, False)


@given(st.lists(st.floats(-1, 2), min_size=4, max_size=4))
def test_a_box_comes_out_inside_the_picture_or_not_at_all(value):
    try:
        x1, y1, x2, y2 = read_box(value, "here")
    except RawError:
        outside = min(value) < -OUTSIDE or max(value) > 1 + OUTSIDE
        clipped = [min(max(v, 0), 1) for v in value]
        assert outside or clipped[0] >= clipped[2] or clipped[1] >= clipped[3]
        return
    assert 0 <= x1 < x2 <= 1
    assert 0 <= y1 < y2 <= 1
    assert max(abs(a - b) for a, b in zip(value, (x1, y1, x2, y2), strict=True)) <= OUTSIDE
