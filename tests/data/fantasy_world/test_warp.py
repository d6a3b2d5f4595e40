"""The warp of frame 0 into a later frame tells right units, orders and conventions from wrong ones."""

from functools import cache

import numpy as np
import pytest

from stagecoach.data.fantasy_world.synthetic import render_clip
from stagecoach.data.fantasy_world.warp import AXES, FLOOR, check_warp, invert, likely_cause, problem

FRAMES, HEIGHT, WIDTH = 9, 64, 96
MOVING = 0, 2, 6, 7, 10, 11
"""Clips of seed 0 with depth that changes: forward, around, up, down, forward, backward."""


@cache
def clip(index: int):
    made = render_clip(0, index, FRAMES, HEIGHT, WIDTH)
    intrinsics = np.tile(made.intrinsics * [WIDTH, HEIGHT, WIDTH, HEIGHT], (FRAMES, 1))
    return made.depth.astype(np.float64), made.extrinsics, intrinsics


def inverted(depth):
    return np.divide(1, depth, where=depth > 0, out=np.zeros_like(depth))


MISTAKES = {
    "millimetres": (lambda d, e: (1000 * d, e), "another unit.* 0.001 times as large"),
    "camera to world": (lambda d, e: (d, invert(e)), "--camera-convention c2w"),
    "reversed": (lambda d, e: (d, e[::-1]), "run backwards in time"),
    "disparity": (lambda d, e: (inverted(d), e), "--depth-kind disparity"),
    "micrometres of cameras": (lambda d, e: (d, e * [1, 1, 1, 1e6]), r"another unit.* 1e\+06 times as large"),
    "opengl": (lambda d, e: (d, AXES["opengl"].T @ e), "--camera-axes opengl"),
    "opengl camera to world": (
        lambda d, e: (d, invert(AXES["opengl"].T @ e)),
        "--camera-convention c2w --camera-axes opengl",
    ),
    "ned": (lambda d, e: (d, AXES["ned"].T @ e), "--camera-axes ned"),
}


def test_right_clips_pass_and_wrong_ones_are_an_order_worse():
    found = {name: [] for name in ("right", *MISTAKES)}
    for index in MOVING:
        depth, extrinsics, intrinsics = clip(index)
        found["right"].append(check_warp(depth, extrinsics, intrinsics))
        assert problem(depth, extrinsics, intrinsics, found["right"][-1], 0.02) is None
        for name, (change, _) in MISTAKES.items():
            found[name].append(check_warp(*change(depth, extrinsics), intrinsics))
    median = {name: np.median([np.inf if w.error is None else w.error for w in warps]) for name, warps in found.items()}
    assert median.pop("right") < 0.003
    assert min(median.values()) > 0.03


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_likely_cause_is_named_with_its_option(mistake):
    change, message = MISTAKES[mistake]
    depth, extrinsics, intrinsics = clip(2)
    depth, extrinsics = change(depth, extrinsics)
    found = check_warp(depth, extrinsics, intrinsics)
    with pytest.raises(ValueError, match=f"depth and cameras do not agree: .*{message}"):
        raise ValueError(problem(depth, extrinsics, intrinsics, found, 0.02))


def test_a_nearly_static_clip_says_nothing_and_says_so():
    depth, extrinsics, intrinsics = clip(0)
    still = np.tile(depth[:1], (FRAMES, 1, 1)), np.tile(extrinsics[:1], (FRAMES, 1, 1)), intrinsics
    found = check_warp(*still)
    assert found.still
    assert found.error is None
    assert problem(*still, found, 0.02) is None
    alone = depth[:1], extrinsics[:1], intrinsics[:1]
    assert check_warp(*alone).still
    assert problem(*alone, check_warp(*alone), 0.02) is None


def test_noise_is_an_error_without_a_cause_and_passes_below_the_threshold():
    depth, extrinsics, intrinsics = clip(0)
    noisy = depth * np.random.default_rng(0).uniform(0.95, 1.05, depth.shape)
    found = check_warp(noisy, extrinsics, intrinsics)
    assert FLOOR < found.error < 0.05
    assert likely_cause(noisy, extrinsics, intrinsics, found) is None
    assert problem(noisy, extrinsics, intrinsics, found, 0.05) is None
    assert "no other unit" in problem(noisy, extrinsics, intrinsics, found, 0.01)


def test_invalid_pixels_and_a_far_turn_leave_a_nearer_frame():
    depth, extrinsics, intrinsics = clip(8)  # a pan
    depth = depth.copy()
    depth[-1] = np.nan
    found = check_warp(depth, extrinsics, intrinsics)
    assert found.frame == (FRAMES - 1) // 2
    assert found.error < 0.003
    depth[1:] = 0
    found = check_warp(depth, extrinsics, intrinsics)
    assert (found.error, found.frame, found.still) == (None, 0, False)
    assert problem(depth, extrinsics, intrinsics, found, 0.02) is None  # nothing to compare


def test_cameras_that_lose_sight_of_the_scene_at_once_are_refused():
    depth, extrinsics, intrinsics = clip(0)
    lost = extrinsics * [1, 1, 1, 1e6]
    found = check_warp(depth, lost, intrinsics)
    assert found.error is None
    assert "no later frame sees a fifth of frame 0" in problem(depth, lost, intrinsics, found, 0.02)


def test_sparse_depth_is_compared_where_there_is_some():
    depth, extrinsics, intrinsics = clip(0)
    sparse = np.where(np.random.default_rng(0).random(depth.shape) < 0.1, depth, 0)
    assert check_warp(sparse, extrinsics, intrinsics).error < 0.01
    assert check_warp(sparse * 1000, extrinsics, intrinsics).error > 0.03
