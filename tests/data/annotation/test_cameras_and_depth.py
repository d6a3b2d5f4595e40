"""Cameras by COLMAP and depth by a network on rendered frames, whose truth is known."""

import numpy as np
import pytest

from stagecoach.data.annotation.cameras import CameraEstimate, ColmapCameras
from stagecoach.data.annotation.depth import agree
from stagecoach.data.building.jobs import RawError
from tests.noise_room import noise_room


def rotations_off(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Degrees between the rotations of two tracks, each relative to its first camera."""
    one, other = (track[:, :, :3] @ track[0, :, :3].T for track in (found, true))
    return np.degrees(np.arccos(np.clip((np.einsum("tij,tij->t", one, other) - 1) / 2, -1, 1)))


@pytest.fixture(scope="module")
def room():
    video, depth, outer, inner = noise_room(9, 240, 320)
    return video, depth, outer, inner, ColmapCameras().estimate(list(video), "room.mp4")


def test_colmap_finds_the_cameras_of_rendered_frames(room):
    _, depth, outer, inner, found = room
    assert rotations_off(found.extrinsics, outer).max() < 0.5
    assert found.intrinsics[0, 0] == pytest.approx(inner[0], rel=0.05)
    places = [-np.einsum("tji,tj->ti", e[:, :, :3], e[:, :, 3]) for e in (found.extrinsics, outer)]
    steps = [np.linalg.norm(np.diff(place, axis=0), axis=1) for place in places]
    scale = np.median(steps[0] / steps[1])
    np.testing.assert_allclose(steps[0], scale * steps[1], rtol=0.1)
    for points, true in zip(found.points, depth, strict=True):
        z = true[points[:, 1].astype(int), points[:, 0].astype(int)]
        assert np.median(np.abs(points[:, 2] / scale / z - 1)) < 0.03


def test_a_camera_that_stands_still_is_refused(room):
    with pytest.raises(
        RawError, match=r"still.mp4: COLMAP places 0 of 3 frames, expected all; a camera that only turns"
    ):
        ColmapCameras().estimate([room[0][0]] * 3, "still.mp4")


def test_metric_depth_puts_the_cameras_into_metres(room):
    _, depth, outer, _, found = room
    agreed = agree(depth, True, found, "room", 0.15, 0.02)
    np.testing.assert_array_equal(agreed.depth, depth)
    length = [
        np.linalg.norm(e[-1, :, 3] - e[-1, :, :3] @ e[0, :, :3].T @ e[0, :, 3]) for e in (agreed.extrinsics, outer)
    ]
    assert length[0] == pytest.approx(length[1], rel=0.05)
    assert agreed.error < 0.03
    assert agreed.warp < 0.01


def test_disparity_gets_a_factor_and_a_shift_from_the_points(room):
    _, depth, _, _, found = room
    agreed = agree((3 / depth + 5).astype(np.float32), False, found, "room", 0.15, 0.02)
    ratio = agreed.depth / depth
    assert np.median(np.abs(ratio / np.median(ratio) - 1)) < 0.03
    assert np.median(agreed.depth) == pytest.approx(1, abs=1e-3)
    assert agreed.warp < 0.02


def test_what_contradicts_the_points_is_refused(room):
    _, depth, _, _, found = room
    with pytest.raises(RawError, match=r"room: estimated disparity is off the cameras' points by inf "):
        agree(-1 / depth, False, found, "room", 0.15, 0.02)
    noise = np.random.default_rng(0).uniform(1, 20, depth.shape).astype(np.float32)
    with pytest.raises(RawError, match="room: estimated depth is off the cameras' points by 0"):
        agree(noise, True, found, "room", 0.15, 0.02)


def test_depth_that_fits_the_points_but_not_the_scene_is_found_by_the_warp(room):
    _, depth, _, _, found = room
    bent = depth.copy()
    bent[-1] *= 1.2
    with pytest.raises(RawError, match="room: depth and cameras do not agree: frame 0 warped into frame 8 is off by"):
        agree(bent, True, CameraEstimate(found.extrinsics, found.intrinsics, found.points), "room", 0.5, 0.02)
