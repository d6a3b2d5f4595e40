"""Poses as OpenPose, DWPose and MMPose write them are the same 134 points; what was not found has confidence 0."""

import json
import math

import numpy as np
import pytest

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.poses import PLAIN, PoseReading, load_poses, read_poses

OURS = [
    "nose",
    "neck",
    "r_shoulder",
    "r_elbow",
    "r_wrist",
    "l_shoulder",
    "l_elbow",
    "l_wrist",
    "r_hip",
    "r_knee",
    "r_ankle",
    "l_hip",
    "l_knee",
    "l_ankle",
    "r_eye",
    "l_eye",
    "r_ear",
    "l_ear",
    "l_big_toe",
    "l_small_toe",
    "l_heel",
    "r_big_toe",
    "r_small_toe",
    "r_heel",
]
COCO = [
    "nose",
    "l_eye",
    "r_eye",
    "l_ear",
    "r_ear",
    "l_shoulder",
    "r_shoulder",
    "l_elbow",
    "r_elbow",
    "l_wrist",
    "r_wrist",
    "l_hip",
    "r_hip",
    "l_knee",
    "r_knee",
    "l_ankle",
    "r_ankle",
    "l_big_toe",
    "l_small_toe",
    "l_heel",
    "r_big_toe",
    "r_small_toe",
    "r_heel",
]
BODY_25 = [
    "nose",
    "neck",
    "r_shoulder",
    "r_elbow",
    "r_wrist",
    "l_shoulder",
    "l_elbow",
    "l_wrist",
    "mid_hip",
    "r_hip",
    "r_knee",
    "r_ankle",
    "l_hip",
    "l_knee",
    "l_ankle",
    "r_eye",
    "l_eye",
    "r_ear",
    "l_ear",
    "l_big_toe",
    "l_small_toe",
    "l_heel",
    "r_big_toe",
    "r_small_toe",
    "r_heel",
]
ONE = np.zeros(1, np.int64)


def reordered(points: np.ndarray, names: list[str]) -> np.ndarray:
    """Our first 24 points [24, 3] by other names; the middle of the hips is of no use to us."""
    by_name = dict(zip(OURS, points, strict=False))
    return np.array([by_name.get(name, (0.5, 0.5, 1.0)) for name in names])


@pytest.fixture
def points(dance):
    """[134, 3] with confidences that differ, the neck in the middle of the shoulders."""
    table = np.concatenate([dance.points[0], np.linspace(0.9, 0.5, 134)[:, None]], 1)
    table[1] = [*table[[2, 5], :2].mean(0), table[[2, 5], 2].min()]
    return table


def written(path, content):
    path.write_text(json.dumps(content))
    return path


def check(path, points, reading=PLAIN, size=None, confidence=True):
    xy, conf = read_poses(path, ONE, reading, size)
    np.testing.assert_allclose(xy[0], points[:, :2], atol=1e-6)
    if confidence:
        np.testing.assert_allclose(conf[0], points[:, 2], atol=1e-6)


def test_133_points_get_a_neck_in_the_middle_of_the_shoulders_as_sure_as_the_less_sure_one(tmp_path, points):
    coco = np.concatenate([reordered(points, COCO), points[24:]])
    assert len(coco) == 133
    check(written(tmp_path / "a.json", {"keypoints": coco.tolist()}), points)
    check(written(tmp_path / "flat.json", {"keypoints": coco.reshape(-1).tolist()}), points)
    instance = {"keypoints": coco[:, :2].tolist(), "keypoint_scores": coco[:, 2].tolist()}
    check(written(tmp_path / "mm.json", {"instance_info": [{"frame_id": 1, "instances": [instance]}]}), points)
    np.save(tmp_path / "a.npy", coco[None])
    check(tmp_path / "a.npy", points)
    coco[5, 2] = 0
    _, conf = read_poses(written(tmp_path / "b.json", {"keypoints": coco.tolist()}), ONE)
    assert conf[0, 1] == 0, "no neck without a shoulder"


def test_the_order_of_134_points_is_looked_at(tmp_path, points):
    coco = np.concatenate([reordered(points, COCO)[:17], points[1:2], points[18:]])
    file = written(tmp_path / "coco.json", {"keypoints": coco.tolist()})
    check(file, points, PoseReading(order="coco"))
    with pytest.raises(RawError, match=r"point 17 is the middle of points 5 and 6.*give --pose-order coco"):
        read_poses(file, ONE)
    ours = written(tmp_path / "ours.json", {"keypoints": points.tolist()})
    with pytest.raises(RawError, match=r"point 17 is not in the middle of points 5 and 6.*leave --pose-order out"):
        read_poses(ours, ONE, PoseReading(order="coco"))


@pytest.mark.parametrize("body", ["25", "18"])
def test_openpose_is_read_in_pixels_of_its_canvas_or_the_video(tmp_path, points, body):
    scaled = points * [640, 360, 1]
    names = BODY_25 if body == "25" else OURS[:18]
    person = {
        "person_id": [-1],
        "pose_keypoints_2d": reordered(scaled, names).reshape(-1).tolist(),
        "face_keypoints_2d": np.concatenate([scaled[24:92], np.ones((2, 3))]).reshape(-1).tolist(),
        "hand_left_keypoints_2d": scaled[92:113].reshape(-1).tolist(),
        "hand_right_keypoints_2d": scaled[113:].reshape(-1).tolist(),
        "pose_keypoints_3d": [],
    }
    expected = points.copy()
    if body == "18":
        expected[18:24] = 0
    check(written(tmp_path / "v.json", {"version": 1.3, "people": [person]}), expected, size=(360, 640))
    file = written(tmp_path / "c.json", [{"people": [person], "canvas_width": 640, "canvas_height": 360}])
    check(file, expected, size=(720, 1280))
    del person["face_keypoints_2d"]
    person["hand_left_keypoints_2d"] = None
    expected[24:113] = 0
    check(written(tmp_path / "b.json", {"people": [person]}), expected, size=(360, 640))
    with pytest.raises(RawError, match=r"pixels of an unknown canvas found, expected --pose-canvas WIDTHxHEIGHT"):
        read_poses(tmp_path / "b.json", ONE)
    person["hand_right_keypoints_2d"] = [1, 2, 3]
    with pytest.raises(RawError, match=r"person 0: 'hand_right_keypoints_2d' has 3 numbers, expected .* of 21 points"):
        read_poses(written(tmp_path / "d.json", {"people": [person]}), ONE, size=(360, 640))


@pytest.mark.parametrize("form", ["scores", "nested", "plain"])
def test_dwposes_own_dictionary(tmp_path, points, form):
    """Two persons, the second twice as large: rows of candidate are named by subset, left hands come first."""
    small = points * [0.4, 0.4, 1]
    people = np.stack([small, points])
    people[1, 4] = [-1, -1, 0]  # not found
    people[1, 100] = [-1, -1, 0]
    subset = np.where(people[:, :18, 2] > 0, np.arange(36).reshape(2, 18), -1)
    hands = np.concatenate([people[:, 92:113], people[:, 113:]])
    bodies = {"candidate": people[:, :18, :2].reshape(-1, 2).tolist(), "subset": subset.tolist()}
    faces = people[:, 24:92]
    if form == "plain":
        content = {"bodies": bodies, "hands": hands[..., :2].tolist(), "faces": faces[..., :2].tolist()}
    else:
        bodies["score"] = people[:, :18, 2].tolist()
        content = {"bodies": bodies, "faces": faces[..., :2].tolist(), "faces_score": faces[..., 2].tolist()}
        if form == "nested":
            content["hands"] = {"candidate": hands[..., :2].tolist(), "subset": hands[..., 2].tolist()}
        else:
            content |= {"hands": hands[..., :2].tolist(), "hands_score": hands[..., 2].tolist()}
    file = written(tmp_path / "d.json", content)
    xy, conf = read_poses(file, ONE)
    there = people[1, :, 2] > 0
    there[18:24] = False  # no feet
    np.testing.assert_allclose(xy[0, there], people[1, there, :2], atol=1e-6)
    np.testing.assert_allclose(conf[0], np.where(there, 1 if form == "plain" else people[1, :, 2], 0), atol=1e-6)
    other, _ = read_poses(file, ONE, PoseReading(person=0))
    np.testing.assert_allclose(other[0, :18], small[:18, :2], atol=1e-6)
    content["hands"] = [[1.0, 2.0]]
    with pytest.raises(RawError, match=r"'hands' has shape \[1, 2\], expected \[4, 21, 2\]"):
        read_poses(written(tmp_path / "e.json", content), ONE)


def test_a_point_that_is_null_or_not_finite_was_not_found(tmp_path, points):
    given = points.tolist()
    given[3], given[4], given[7][1], given[9][2], given[10][0] = None, [None] * 3, math.nan, None, math.inf
    file = written(tmp_path / "n.json", {"keypoints": given})
    expected = points.copy()
    expected[[3, 4, 7, 9, 10]] = 0
    check(file, expected)
    nobody = written(tmp_path / "clip.json", [{"keypoints": given}, {"keypoints": None}, {"people": []}])
    poses = load_poses(nobody, PLAIN)
    assert poses.conf.any(1).tolist() == [True, False, False]
    with pytest.raises(RawError, match="nobody found in 2 poses, expected a dancer in some of them"):
        load_poses(written(tmp_path / "none.json", [{"people": []}] * 2), PLAIN)


def test_confidences_are_fractions_unless_something_else_is_said(tmp_path, points):
    percent = written(tmp_path / "p.json", {"keypoints": (points * [1, 1, 100]).tolist()})
    with pytest.raises(
        RawError, match=r"confidences from 50 to 90 found, expected fractions.*--pose-confidence percent"
    ):
        read_poses(percent, ONE)
    check(percent, points, PoseReading(confidence="percent"))
    logits = points.copy()
    logits[:, 2] = np.log(points[:, 2] / (1 - points[:, 2]))
    logits[0, 2] = -1.5
    file = written(tmp_path / "l.json", {"keypoints": logits.tolist()})
    with pytest.raises(RawError, match=r"confidences from -1\.5 to .*--pose-confidence logit if they are logits"):
        read_poses(file, ONE)
    expected = points.copy()
    expected[0, 2] = 1 / (1 + math.exp(1.5))
    check(file, expected, PoseReading(confidence="logit"))
    with pytest.raises(RawError, match="expected percent; leave --pose-confidence out"):
        read_poses(written(tmp_path / "f.json", {"keypoints": points.tolist()}), ONE, PoseReading(confidence="percent"))
    peaks = points.copy()
    peaks[:5, 2] = 1.1  # as DWPose gives them now and then
    _, conf = read_poses(written(tmp_path / "s.json", {"keypoints": peaks.tolist()}), ONE)
    assert (conf[0, :5] == 1).all()


def test_pixels_are_those_of_the_canvas_that_is_named_said_or_shown(tmp_path, points):
    pixels = PoseReading(unit="pixel")
    scaled = (points * [1280, 720, 1]).tolist()
    file = written(tmp_path / "a.json", {"keypoints": scaled})
    check(file, points, pixels, size=(720, 1280))
    check(file, points, PoseReading(unit="pixel", canvas=(1280, 720)), size=(1080, 1920))
    check(written(tmp_path / "b.json", {"keypoints": scaled, "width": 1280, "height": 720}), points, pixels, (64, 64))
    with pytest.raises(
        RawError,
        match=r"(hip|knee|ankle|foot|hand|face|shoulder|elbow|wrist).* far outside of 640 x 360 pixels, as are",
    ):
        read_poses(file, ONE, pixels, (360, 640))
    with pytest.raises(RawError, match=r"no point beyond .* of 3840 x 2160 pixels, expected a dancer in the middle"):
        read_poses(file, ONE, pixels, (2160, 3840))
    centred = written(tmp_path / "c.json", {"keypoints": (points * [2, 2, 1] - [1, 1, 0]).tolist()})
    check(centred, points, PoseReading(unit="centred"))
    with pytest.raises(RawError, match=r"of the coordinates are below 0.*give --pose-unit centred"):
        read_poses(centred, ONE)


@pytest.mark.parametrize("wrong", ["swapped", "from below", "turned"])
def test_a_dancer_who_never_stands_is_named(tmp_path, dance, wrong):
    xy = dance.points
    xy = {"swapped": xy[..., ::-1], "from below": xy * [1, -1] + [0, 1], "turned": xy[..., ::-1] * [1, -1] + [0, 1]}[
        wrong
    ]
    table = np.concatenate([xy, np.ones((len(xy), 134, 1))], -1)
    np.save(tmp_path / "a.npy", table)
    with pytest.raises(RawError, match=r"the neck is above the hips in 0% of 60 poses.*--pose-posture any"):
        load_poses(tmp_path / "a.npy", PLAIN)
    assert len(load_poses(tmp_path / "a.npy", PoseReading(posture="any"))) == 60
