"""Poses in both units and forms; what contradicts itself is named."""

import json

import numpy as np
import pytest

from stagecoach.data.building.jobs import RawError
from stagecoach.data.dance_with_music.poses import PoseReading, pose_count, read_poses
from stagecoach.data.dance_with_music.skeleton import FACE, face_boxes, five_points

PIXELS = PoseReading(unit="pixel", canvas=(512.0, 512.0))


def write_frames(folder, frames):
    folder.mkdir(parents=True)
    for number, points in enumerate(frames):
        (folder / f"frame_{number:03d}.json").write_text(json.dumps({"keypoints": points, "frame_id": number}))
    return folder


def write_clip(path, frames, first=0):
    named = [
        [dict(zip(("x", "y", "confidence", "joint_type"), (*p, "joint"), strict=True)) for p in points]
        for points in frames
    ]
    path.write_text(
        json.dumps(
            {
                "video_id": "v",
                "fps": 24,
                "poses": [
                    {"frame_id": first + k, "timestamp": k / 24, "keypoints": points} for k, points in enumerate(named)
                ],
            }
        )
    )
    return path


def test_both_forms_and_units_give_the_same_points(tmp_path, keypoints):
    chosen = np.array([0, 1, 1, 2])
    frames = [[[x * (1 - 0.1 * k), y, c] for x, y, c in keypoints()] for k in range(3)]
    pixels = [[[512 * x, 512 * y, c] for x, y, c in points] for points in frames]
    xy, conf = read_poses(write_frames(tmp_path / "f", frames), chosen)
    assert (xy.shape, conf.shape, xy.dtype) == ((4, 134, 2), (4, 134), np.float32)
    np.testing.assert_allclose(xy[1], np.array(frames[1])[:, :2], rtol=1e-6)
    np.testing.assert_allclose(conf, 0.9, rtol=1e-6)
    np.testing.assert_array_equal(xy[1], xy[2])
    for first in (0, 1):
        other, _ = read_poses(write_clip(tmp_path / f"c{first}.json", pixels, first), chosen, PIXELS)
        np.testing.assert_allclose(other, xy, rtol=1e-5)
    assert pose_count(tmp_path / "f") == pose_count(tmp_path / "c0.json") == 3


def test_a_unit_that_contradicts_the_numbers_names_the_flag(tmp_path, keypoints):
    one = np.zeros(1, np.int64)
    with pytest.raises(RawError, match="expected points divided by width and height; give --pose-unit pixel if"):
        read_poses(write_frames(tmp_path / "p", [keypoints(512)]), one)
    with pytest.raises(RawError, match="expected pixels of 512 x 512; give --pose-unit normalised"):
        read_poses(write_frames(tmp_path / "n", [keypoints()]), one, PIXELS)
    lost = [[700.0, 700.0, 0.0], *keypoints()[1:]]
    read_poses(write_frames(tmp_path / "l", [lost]), one)  # a point that was not found says nothing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:18], "18 keypoints found, expected DWPose's 134 or COCO-WholeBody's 133$"),
        (lambda p: [[0.5, 0.5]] * 134, r"shape \(134, 2\) found"),
        (lambda p: [{"x": 0.5}, *p[1:]], "not all .x, y, confidence. .KeyError"),
        (lambda p: "none", "no list 'keypoints' found"),
    ],
)
def test_malformed_frames_are_named(tmp_path, keypoints, change, message):
    folder = write_frames(tmp_path / "f", [change(keypoints())])
    with pytest.raises(RawError, match=rf"frame_000\.json: .*{message}"):
        read_poses(folder, np.zeros(1, np.int64))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no valid JSON"),
        ("[]", "no list 'poses' found"),
        (json.dumps({"poses": [{"frame_id": 0}, {"frame_id": 2}]}), r"frame_id \[0, 2\]\.\.\. found"),
    ],
)
def test_malformed_clips_are_named(tmp_path, content, message):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(RawError, match=rf"c\.json: {message}"):
        pose_count(tmp_path / "c.json")


def test_face_boxes_span_the_face_with_its_forehead(dance):
    boxes, valid = face_boxes(dance.points[:3], np.ones((3, 134)))
    assert valid.all()
    face = dance.points[:3, FACE]
    low, high = face.min(1), face.max(1)
    size = high - low
    np.testing.assert_allclose(boxes[:, :2], low - size * [0.1, 0.3], atol=1e-6)
    np.testing.assert_allclose(boxes[:, 2:], high + size * 0.1, atol=1e-6)


def test_a_face_that_was_not_found_has_no_box_and_no_five_points(dance):
    conf = np.ones((2, 134))
    conf[0, FACE] = 0.1
    boxes, valid = face_boxes(dance.points[:2], conf)
    assert valid.tolist() == [False, True]
    assert not boxes[0].any()
    assert five_points(dance.points[0], conf[0]) is None
    five = five_points(dance.points[1], conf[1])
    assert five[0, 0] < five[1, 0], "the left eye of the picture first"
    assert five[0, 1] < five[2, 1] < five[3, 1], "eyes above nose above mouth"
