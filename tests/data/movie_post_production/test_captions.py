"""The guide's layout is read as it is; what is not as documented is named, never mended in silence."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.data.building.jobs import RawError
from stagecoach.data.movie_post_production.boxes import OUTSIDE, read_box
from stagecoach.data.movie_post_production.captions import read_captions
from stagecoach.data.movie_post_production.objects import guess_depth


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
        (lambda e: e.pop("objects"), r"'objects' is None, expected a list of objects, \[\] in a picture without any"),
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
        (
            lambda e: e["objects"][0].update(bbox=[0, 0, 640, 480]),
            r"beyond the picture, expected x1 < x2 and y1 < y2 in 0\.\.1; it is one by .*xyxy --box-units 1000",
        ),
        (lambda e: e["objects"][0].update(bbox=[0.5, 0.5, 0.2, 0.9]), "an empty box, expected x1 < x2"),
        (lambda e: e["objects"][0].update(bbox=[0.5, 0.5, 0.5, 0.9]), "an empty box"),
        (lambda e: e["objects"][0].update(bbox=[1.01, 0.5, 1.04, 0.9]), "an empty box"),
        (
            lambda e: e["objects"][0].update(ref_object_id="a/b"),
            "'ref_object_id' is 'a/b', expected a number from 0 or",
        ),
        (lambda e: e["objects"][0].update(ref_object_id="a"), "object 0 refers to object 'a' of image 'scene_00006'"),
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


def test_files_named_by_a_mac_belong_together(raw):
    """Letters are composed in one file's name, taken apart in the next (NFD), however they stand in the captions."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    for folder, suffix, name in (("images", ".png", apart), ("captions", ".json", composed)):
        shutil.move(raw / folder / f"scene_00007{suffix}", raw / folder / f"{name}{suffix}")
    for path in (raw / "captions" / f"{composed}.json", raw / "captions/scene_00006.json"):
        entry = json.loads(path.read_text().replace("scene_00007", apart))
        path.write_text(json.dumps(entry))
    pictures, bad, names = read_captions(raw)
    assert not bad
    assert names[0] == f"{composed}.json"
    assert (pictures[0].image_id, pictures[0].image.name) == (composed, f"{apart}.png")
    assert pictures[-1].objects[0].reference.image == pictures[0].image
    key = pictures[0].key
    shutil.move(raw / f"captions/{composed}.json", raw / f"captions/{apart}.json")
    assert read_captions(raw)[0][0].key == key, "the key does not depend on the spelling"
    shutil.copy(raw / f"captions/{apart}.json", raw / f"captions/{composed}.json")
    assert "the same name as" in first_error(raw)


def test_objects_may_have_texts_as_ids(raw, edit):
    edit(raw, 6, lambda e: e["objects"][0].update(object_id="left chair"))
    edit(raw, 6, lambda e: e["objects"][1].update(object_id="12"))
    edit(raw, 7, lambda e: e["objects"][0].update(ref_object_id="left chair"))
    six, seven = read_captions(raw)[0][6:]
    assert [o.object_id for o in six.objects[:2]] == ["left chair", 12], "a number as text is that number"
    assert seven.objects[0].reference.box == six.objects[0].box


def test_a_picture_may_have_no_objects(raw, edit):
    edit(raw, 7, lambda e: e.update(objects=[]))
    pictures, bad, _ = read_captions(raw)
    assert [len(p.objects) for p in pictures if p.image_id == "scene_00007"] == [0]
    assert "refers to object 0 of image 'scene_00007'" in str(bad[0][1]), "its partner has lost its reference"


@pytest.mark.parametrize("nested", [False, True])
def test_dense_layouts_prompt_and_annos_in_pixels_are_read(raw, edit, nested):
    expected = read_captions(raw)[0][5]

    def published(entry):
        entry["prompt"], objects = entry.pop("global_caption"), entry.pop("objects")
        width, height = entry["width"], entry["height"]
        for item in objects:
            del item["object_id"]
            item["bbox"] = [v * side for v, side in zip(item["bbox"], (width, height) * 2, strict=True)]
        entry["annos"] = [objects] if nested else objects

    edit(raw, 5, published)
    found = read_captions(raw)[0][5]
    assert found.caption == expected.caption
    for one, other in zip(found.objects, expected.objects, strict=True):
        assert one.box == pytest.approx(other.box)
        assert one.text == other.text


def test_image_path_names_the_picture_by_its_last_part(raw, edit):
    shutil.move(raw / "images/scene_00007.png", raw / "images/IMG_7.PNG")
    assert "images/scene_00007.png: missing" in first_error(raw)
    edit(raw, 7, lambda e: e.update(image_path="elsewhere/IMG_7.PNG"))
    pictures, bad, _ = read_captions(raw)
    assert (pictures[-1].image.name, bad) == ("IMG_7.PNG", [])


def test_what_lies_among_the_pictures_and_is_not_read_is_named(raw, caplog):
    shutil.move(raw / "images/scene_00007.png", raw / "images/scene_00007.heic")
    for name in ("extra.png", "notes.txt", ".DS_Store", "._scene_00001.png"):
        (raw / "images" / name).touch()
    (raw / "captions/._scene_00001.json").touch()
    expected = "scene_00007.heic: a format that is not read, expected PNG, JPEG, WebP, TIFF, BMP or GIF"
    assert expected in first_error(raw)
    assert "passed over 1 .heic, 1 .txt (first notes.txt)" in caplog.text
    assert "passed over 1 pictures without a caption file (first extra.png)" in caplog.text


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
