"""The synthetic pictures must be what their caption files claim: boxes, depth, identities."""

import json

import numpy as np
import pytest
from PIL import Image

from stagecoach.data.figures import COLOURS, MIN_SIDE, NEAR, Variety, render
from stagecoach.data.movie_post_production.captions import read_captions
from stagecoach.data.movie_post_production.synthetic import write_synthetic

PICTURES = range(12)


@pytest.fixture(scope="module")
def pictures():
    return [render(5, i, 64, 96) for i in PICTURES]


def test_boxes_are_those_of_what_is_seen(pictures):
    for picture in pictures:
        height, width = picture.owner.shape
        for number, (x1, y1, x2, y2) in enumerate(picture.boxes):
            rows, columns = np.nonzero(picture.owner == number)
            assert (x1 * width, y1 * height) == (columns.min(), rows.min())
            assert (x2 * width, y2 * height) == (columns.max() + 1, rows.max() + 1)
            assert min(x2 - x1, y2 - y1) >= MIN_SIDE


def test_a_picture_shows_its_objects_and_nothing_else_changes(pictures):
    """Inside each object's own pixels its colours are seen, on the whole."""
    for picture in pictures:
        image = picture.image.astype(float) / 255
        for number, placed in enumerate(picture.objects):
            whole = (picture.owner == number).reshape(64, 2, 96, 2).all((1, 3))
            if whole.sum() < 20:
                continue
            colours = np.array([COLOURS[name] for name in placed.identity.colours])
            if placed.identity.pattern == "plain":
                colours = colours[:1]
            distance = np.abs(image[whole][:, None] - colours).max(-1).min(-1)
            assert np.median(distance) < 0.3


def test_near_objects_hide_far_ones_and_labels_follow_the_distance(pictures):
    hidden = 0
    for picture in pictures:
        for number, placed in enumerate(picture.objects):
            a, b = placed.local(*picture.owner.shape)
            owners = set(picture.owner[placed.identity.mask(a, b)].tolist()) - {number}
            assert all(picture.objects[other].z < placed.z for other in owners)
            hidden += len(owners)
        order = sorted(picture.objects, key=lambda placed: placed.z)
        codes = [("foreground", "midground", "background").index(placed.depth_label) for placed in order]
        assert codes == sorted(codes)
    assert hidden > 3
    assert {placed.depth_label for p in pictures for placed in p.objects} == {"foreground", "midground", "background"}


def test_partners_share_one_object_and_its_appearance(pictures):
    for one, other in zip(pictures[::2], pictures[1::2], strict=True):
        assert one.objects[0].identity == other.objects[0].identity
        assert one.boxes[0] != other.boxes[0]
    assert len({p.objects[0].identity for p in pictures}) == len(pictures) // 2


def test_captions_tell_identities_and_objects_differ(pictures):
    for picture in pictures:
        identities = [placed.identity for placed in picture.objects]
        assert 2 <= len(identities) == len(set(identities)) <= 6
        for identity in identities:
            assert str(identity) in picture.caption
            assert identity.colours[0] in str(identity)


def test_a_picture_depends_on_seed_and_number_alone(tmp_path):
    one, again, other = (render(seed, 2, 64, 64) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.image, again.image)
    assert (one.boxes, one.caption) == (again.boxes, again.caption)
    assert one.caption != other.caption
    write_synthetic(tmp_path / "few", 3, [(64, 64)], seed=1)
    write_synthetic(tmp_path / "many", 5, [(64, 64)], seed=1)
    for name in ("images/scene_00001.png", "captions/scene_00001.json"):
        assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


def test_the_raw_layout_holds_what_was_rendered(synthetic):
    pictures, bad, _ = read_captions(synthetic)
    assert not bad
    rendered = render(3, 2, 64, 96)
    np.testing.assert_array_equal(np.asarray(Image.open(pictures[2].image)), rendered.image)
    assert pictures[2].caption == rendered.caption
    assert [o.box for o in pictures[2].objects] == list(rendered.boxes)
    assert all(o.depth_given for o in pictures[2].objects)


def test_an_odd_last_picture_has_no_partner(tmp_path):
    write_synthetic(tmp_path / "raw", 3, [(64, 64)], seed=0)
    entry = json.loads((tmp_path / "raw/captions/scene_00002.json").read_text())
    assert all("ref_image_id" not in value for value in entry["objects"])
    assert not read_captions(tmp_path / "raw")[1]


@pytest.mark.parametrize(
    ("pictures", "size", "message"),
    [
        (0, (64, 64), "0 pictures of 1 sizes"),
        (1, (16, 64), "pictures of 16 x 64 asked for"),
        (1, (64, 192), "not more than 2.5 to 1"),
    ],
)
def test_what_cannot_be_rendered_is_refused_and_leaves_nothing(tmp_path, pictures, size, message):
    with pytest.raises(ValueError, match=message):
        write_synthetic(tmp_path / "raw", pictures, [size], seed=0)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_never_replaced(tmp_path, raw):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"mine: holds something else than synthetic\.json"):
        write_synthetic(tmp_path / "mine", 1, [(64, 64)], seed=0)
    write_synthetic(raw, 2, [(64, 64)], seed=0)
    assert len(read_captions(raw)[0]) == 2


def test_a_variety_limits_what_there_is_and_what_is_told():
    variety = Variety(least=1, most=2, far=NEAR, patterns=("plain",), described=False)
    pictures = [render(5, i, 64, 64, variety) for i in PICTURES]
    assert {len(picture.objects) for picture in pictures} == {1, 2}
    for picture in pictures:
        assert all(placed.z <= NEAR and placed.identity.pattern == "plain" for placed in picture.objects)
        assert not any(colour in picture.caption.partition(", on ")[0] for colour in COLOURS)
