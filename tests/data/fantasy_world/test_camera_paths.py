"""Presets by their closed forms, keyframes, and what lies between two cameras."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.data.building.jobs import RawError
from stagecoach.data.fantasy_world.camera_paths import PRESETS, keyframe_cameras, looking_at, preset, turns
from stagecoach.data.fantasy_world.camera_track import Cameras, slerp, world_to_camera

FRAMES, HEIGHT, WIDTH = 9, 48, 80


def path(text: str) -> Cameras:
    return preset(text, FRAMES, HEIGHT, WIDTH)


def keyframes(*keys: dict, frames: int = FRAMES, interpolation: str = "smooth", fit: bool = False) -> Cameras:
    file = {"keyframes": list(keys), "interpolation": interpolation}
    return keyframe_cameras(file, frames, HEIGHT, WIDTH, "keys.json", fit)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_starts_at_the_identity_and_is_made_of_rotations(name):
    cameras = path(name)
    np.testing.assert_allclose(cameras.extrinsics[0], np.eye(3, 4), atol=1e-12)
    turn = cameras.extrinsics[..., :3]
    np.testing.assert_allclose(turn @ turn.swapaxes(-1, -2), np.tile(np.eye(3), (FRAMES, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turn), 1)
    moves = np.abs(np.diff(cameras.extrinsics, axis=0)).max()
    assert moves == 0 if name == "still" else moves > 0.01
    np.testing.assert_allclose(cameras.intrinsics, np.tile([500 / 336 * HEIGHT] * 2 + [WIDTH / 2, HEIGHT / 2], (9, 1)))


def test_push_truck_and_pedestal_move_along_one_axis_evenly():
    steps = np.linspace(0, 1, FRAMES)
    ways = {"push:distance=0.4": [0, 0, 0.4], "truck:distance=-2": [-2, 0, 0], "pedestal": [0, -0.2, 0]}
    for text, axis in ways.items():
        cameras = path(text)
        np.testing.assert_allclose(cameras.centres, steps[:, None] * np.array(axis), atol=1e-12)
        np.testing.assert_array_equal(cameras.extrinsics[..., :3], np.tile(np.eye(3), (FRAMES, 1, 1)))


@pytest.mark.parametrize(
    ("text", "ahead", "seen_right"),
    [
        ("pan:degrees=90", [1, 0, 0], [0, 0, -1]),
        ("pan:degrees=-90", [-1, 0, 0], [0, 0, 1]),
        ("tilt:degrees=90", [0, -1, 0], [1, 0, 0]),
        ("roll:degrees=90", [0, 0, 1], [0, 1, 0]),
    ],
)
def test_turns_of_90_degrees_swap_the_axes_and_stay_in_place(text, ahead, seen_right):
    cameras = path(text)
    np.testing.assert_allclose(cameras.centres, 0, atol=1e-12)
    np.testing.assert_allclose(cameras.extrinsics[-1, 2, :3], ahead, atol=1e-12)
    np.testing.assert_allclose(cameras.extrinsics[-1, 0, :3], seen_right, atol=1e-12)


def test_an_orbit_keeps_its_distance_and_looks_at_its_target():
    cameras = path("orbit:degrees=80,depth=1.5,elevation=30")
    target = np.array([0, 0, 1.5])
    np.testing.assert_allclose(np.linalg.norm(cameras.centres - target, axis=-1), 1.5)
    seen = np.einsum("fij,j->fi", cameras.extrinsics[..., :3], target) + cameras.extrinsics[..., 3]
    np.testing.assert_allclose(seen, np.tile([0, 0, 1.5], (FRAMES, 1)), atol=1e-12)
    assert cameras.centres[-1, 0] > 0.5  # to the right
    assert cameras.centres[-1, 1] < -0.5  # and up
    half = path("orbit:degrees=180")
    np.testing.assert_allclose(half.centres[-1], [0, 0, 2], atol=1e-12)


def test_a_spiral_grows_to_its_radius_and_looks_at_its_target():
    cameras = path("spiral:radius=0.2,rounds=3,distance=0.3,depth=2")
    np.testing.assert_allclose(np.hypot(*cameras.centres[:, :2].T), 0.2 * np.linspace(0, 1, FRAMES), atol=1e-12)
    np.testing.assert_allclose(cameras.centres[-1, 2], 0.3)
    seen = np.einsum("fij,j->fi", cameras.extrinsics[..., :3], np.array([0, 0, 2])) + cameras.extrinsics[..., 3]
    np.testing.assert_allclose(seen[:, :2], 0, atol=1e-12)


def test_the_field_of_view_is_that_of_the_height():
    cameras = path("still:fov=90")
    np.testing.assert_allclose(cameras.intrinsics[0], [HEIGHT / 2, HEIGHT / 2, WIDTH / 2, HEIGHT / 2])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("swing", "'swing' found, expected one of push, truck"),
        ("push:angle=3", "'angle=3' found, expected PARAMETER=NUMBER with one of distance, fov"),
        ("orbit:degrees=wide", "'degrees=wide' found"),
        ("orbit:elevation=90", "elevation 90 found"),
        ("spiral:distance=1", "distance 1 found, expected less than the depth 1"),
        ("still:fov=180", "fov 180 found, expected degrees between 0 and 180"),
    ],
)
def test_a_wrong_preset_is_named(text, said):
    with pytest.raises(ValueError, match=said):
        path(text)


def test_one_frame_is_the_first():
    np.testing.assert_allclose(preset("pan", 1, HEIGHT, WIDTH).extrinsics, np.eye(3, 4)[None])


def test_keyframes_are_met_and_straight_between_where_asked():
    first = {"frame": 0, "position": (0, 0, 0), "look_at": (0, 0, 2)}
    last = {"frame": 8, "position": (2, 0, 2), "look_at": (0, 0, 2), "fov": 90}
    cameras = keyframes(first, last, interpolation="linear")
    np.testing.assert_allclose(cameras.centres, np.linspace(0, 1, 9)[:, None] * [2, 0, 2], atol=1e-12)
    np.testing.assert_allclose(cameras.extrinsics[-1, 2, :3], [-1, 0, 0], atol=1e-12)
    half = world_to_camera(turns(np.array([-45.0]), np.zeros(1), np.zeros(1)), cameras.centres[4:5])
    np.testing.assert_allclose(cameras.extrinsics[4:5], half, atol=1e-12)
    assert cameras.intrinsics[-1, 0] == pytest.approx(HEIGHT / 2)


def test_a_spline_passes_its_keyframes_without_a_corner():
    """Uneven keyframes on a straight line at a steady pace give that line; at a corner the velocity is the mean."""
    line = [{"frame": n, "position": (n / 10, 0.0, n / 20)} for n in (0, 1, 4, 8)]
    np.testing.assert_allclose(keyframes(*line).centres, np.arange(9)[:, None] * [0.1, 0, 0.05], atol=1e-12)
    places = {0: (0, 0, 0), 40: (4, 0, 0), 80: (4, 0, 4)}
    corner = [{"frame": frame, "position": place} for frame, place in places.items()]
    centres = keyframes(*corner, frames=81).centres
    np.testing.assert_allclose(centres[[0, 40, 80]], [[0, 0, 0], [4, 0, 0], [4, 0, 4]], atol=1e-12)
    before, after = centres[40] - centres[39], centres[41] - centres[40]
    np.testing.assert_allclose(before, [0.05, 0, 0.05], atol=6e-3)
    np.testing.assert_allclose(after, before, atol=6e-3)


def test_keyframes_are_seen_from_the_first_and_hold_after_the_last():
    keys = [{"frame": 0, "position": (5, 0, 0), "yaw": 90}, {"frame": 4, "position": (6, 0, 0), "yaw": 90, "roll": 30}]
    cameras = keyframes(*keys)
    np.testing.assert_allclose(cameras.extrinsics[0], np.eye(3, 4), atol=1e-12)
    np.testing.assert_allclose(cameras.centres[4:], np.tile([0, 0, 1], (5, 1)), atol=1e-12)  # forward
    spread = keyframes(*keys, fit=True)
    np.testing.assert_allclose(spread.centres[:, 2], np.linspace(0, 1, 9), atol=1e-12)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([], "no keyframe found"),
        ([{"frame": 2, "position": (0, 0, 0)}], "keyframe 0 at frame 2 found, expected keyframes from frame 0"),
        ([{"frame": n, "position": (0, 0, 0)} for n in (0, 3, 3)], "keyframe 2 at frame 3 found"),
        ([{"frame": n, "position": (0, 0, 0)} for n in (0, 9)], "a keyframe at frame 9 found, expected the last at 8"),
        ([{"frame": 0, "position": (0, 0, 0), "look_at": (0, 0, 1), "yaw": 3}], "has look_at and yaw or pitch"),
        ([{"frame": 0, "position": (0, 0, 0), "look_at": (0, 5, 0)}], r"looks along \[0, 5, 0\] has no upright"),
        ([{"frame": 0, "position": (0, 0, 0), "fov": 0}], "keyframe 0: camera: fov 0 found"),
    ],
)
def test_wrong_keyframes_are_named(keys, said):
    with pytest.raises(RawError, match=f"keys.json: .*{said}"):
        keyframes(*keys)


def test_looking_and_turning_agree():
    yaw, pitch = np.array([20.0, -70.0]), np.array([10.0, 35.0])
    axes = turns(yaw, pitch, np.zeros(2))
    np.testing.assert_allclose(looking_at(3 * axes[..., 2]), axes, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8), st.floats(0, 1))
def test_slerp_turns_evenly_by_the_shorter_way(values, part):
    pair = np.array(values).reshape(2, 4)
    if (np.linalg.norm(pair, axis=-1) < 1e-2).any():
        return
    first, second = (pair / np.linalg.norm(pair, axis=-1, keepdims=True))[:, None]
    angle = np.arccos(np.clip(abs(float((first * second).sum())), 0, 1))
    found = slerp(first, second, np.array([part]))
    assert np.linalg.norm(found) == pytest.approx(1)
    assert np.arccos(np.clip(float((first * found).sum()), -1, 1)) == pytest.approx(part * angle, abs=1e-6)
