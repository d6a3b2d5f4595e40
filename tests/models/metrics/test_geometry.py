"""Depth, point clouds and reprojection against closed forms and a drawn scene."""

import math

import numpy as np
import pytest
import torch

from stagecoach.data.fantasy_world.cameras import unproject
from stagecoach.data.fantasy_world.scene import Plane, Scene, Sphere, Texture
from stagecoach.models.metrics.depth import depth_errors
from stagecoach.models.metrics.metric import Absent, Unavailable, measured
from stagecoach.models.metrics.points import cloud_errors
from stagecoach.models.metrics.reprojection import reprojection_errors


def _depth() -> tuple[torch.Tensor, torch.Tensor]:
    truth = torch.from_numpy(np.random.default_rng(0).uniform(1, 5, (2, 6, 8)))
    valid = torch.ones(2, 6, 8, dtype=torch.bool)
    valid[0, 0] = False
    return truth, valid


def test_depth_errors_are_the_published_ones_over_valid_pixels():
    truth, valid = _depth()
    depth = torch.where(valid, 1.2 * truth, torch.nan)
    found = depth_errors(depth, truth, valid)
    assert found["depth_abs_rel"] == pytest.approx(0.2)
    assert found["depth_delta1"] == 1.0
    assert found["depth_rmse"] == pytest.approx(0.2 * truth[valid].square().mean().sqrt().item())
    assert depth_errors(1.3 * truth, truth, valid)["depth_delta1"] == 0.0
    assert depth_errors(-truth, truth, valid)["depth_delta1"] == 0.0


def test_a_scale_and_a_shift_of_the_clip_are_taken_out_where_asked():
    truth, valid = _depth()
    scaled = depth_errors(0.1 * truth, truth, valid, "median")
    assert scaled["depth_abs_rel_median"] == pytest.approx(0.0, abs=1e-9)
    shifted = depth_errors(0.1 * truth + 2, truth, valid, "affine")
    assert shifted["depth_rmse_affine"] == pytest.approx(0.0, abs=1e-9)
    assert depth_errors(0.1 * truth + 2, truth, valid, "median")["depth_rmse_median"] > 0.1
    flat = depth_errors(torch.ones_like(truth), truth, valid, "affine")
    assert flat["depth_rmse_affine"] == pytest.approx(truth[valid].std(correction=0).item())
    found = measured(depth_errors, truth, truth, torch.zeros_like(valid))
    assert found == Absent("no pixel of the clip has a true depth")


def test_clouds_are_apart_by_what_is_missing_and_by_what_is_too_much():
    grid = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0), [0.0]), -1).reshape(-1, 3)
    assert cloud_errors(grid + np.array([0, 0, 0.25]), grid) == pytest.approx(
        dict.fromkeys(("points_accuracy", "points_completeness", "chamfer"), 0.25)
    )
    half = grid[grid[:, 0] < 5]
    found = cloud_errors(half, grid)  # the missing half is 1, 2, 3, 4, 5 away
    assert found == pytest.approx({"points_accuracy": 0.0, "points_completeness": 1.5, "chamfer": 0.75})
    with pytest.raises(Unavailable, match="a cloud without points"):
        cloud_errors(np.full((3, 3), np.nan), grid)


def _clip(frames: int = 4) -> tuple[torch.Tensor, ...]:
    """A wall and a ball, seen by a camera that moves to the side: depth, cameras, lenses, frames in 0..1."""
    plain = Texture(("red", "blue"), "striped", 1.5, 0.3)
    scene = Scene((Plane((0, 0, 1), 6.0, plain), Sphere((0.4, 0, 3.0), 0.6, plain)), (0.0, -0.6, -0.8), 1e6)
    height, width = 48, 64
    lens = np.array([60.0, 60.0, width / 2, height / 2])
    cameras = [np.concatenate([np.eye(3), [[-0.1 * k], [0], [0]]], 1) for k in range(frames)]
    pictures, depths = zip(*(scene.render(camera, lens, height, width) for camera in cameras), strict=True)
    return (
        torch.from_numpy(np.stack(depths)),
        torch.from_numpy(np.stack(cameras)),
        torch.from_numpy(lens).expand(frames, 4),
        torch.from_numpy(np.stack(pictures)).movedim(-1, 1) / 255,
    )


def test_true_depths_and_cameras_agree_and_wrong_ones_do_not():
    depth, cameras, lens, frames = _clip()
    right = reprojection_errors(depth, cameras, lens, frames)
    assert right["reprojection_depth"] < 1e-4
    assert right["reprojection_colour"] < 0.03
    back = torch.cat([cameras[..., :3], -cameras[..., 3:]], -1)
    wrong = reprojection_errors(depth, back, lens, frames)
    assert wrong["reprojection_colour"] > 3 * right["reprojection_colour"]
    # Camera 1 a metre nearer than it was: the wall at 6 is found at 6 where 5 was expected.
    near = cameras[:2].clone()
    near[1, 2, 3] = -1.0
    assert reprojection_errors(depth[:2], near, lens[:2], given=True)["reprojection_depth_given"] == pytest.approx(
        1 / 6, abs=1e-3
    )
    away = cameras[:2].clone()
    away[1, 0, 3] = 1000.0
    with pytest.raises(Unavailable, match="no pixel of the clip is seen again 1 frames later"):
        reprojection_errors(depth[:2], away, lens[:2])


def test_one_wall_seen_twice_gives_one_cloud():
    depth, cameras, lens, _ = _clip(2)
    first, second = unproject(depth.double(), lens, cameras).flatten(1, 2).numpy()
    assert cloud_errors(first, second)["points_accuracy"] < 6 / 60 * math.sqrt(2)
