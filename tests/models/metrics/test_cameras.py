"""Camera errors against closed forms."""

import math

import numpy as np
import pytest
import torch

from stagecoach.data.fantasy_world.cameras import rotation_from_quaternion
from stagecoach.models.metrics.cameras import pair_errors, path_errors, pose_auc, trajectory_errors, umeyama
from stagecoach.models.metrics.metric import Unavailable

FRAMES = 9


def turn(axis: tuple[float, float, float], degrees: float) -> torch.Tensor:
    half = math.radians(degrees) / 2
    unit = torch.tensor(axis, dtype=torch.float64)
    unit = unit / unit.norm() * math.sin(half)
    return rotation_from_quaternion(torch.cat([unit, torch.tensor([math.cos(half)], dtype=torch.float64)]))


def path(seed: int = 0, frames: int = FRAMES) -> torch.Tensor:
    """World to camera of a hand-held walk."""
    random = np.random.default_rng(seed)
    angles, places = np.cumsum(random.normal(size=(2, frames, 3)), 1)
    rotations = torch.stack([turn((1, 0, 0), a) @ turn((0, 1, 0), 3 * b) @ turn((0, 0, 1), c) for a, b, c in angles])
    return extrinsics(rotations, torch.from_numpy(places) / 5)


def extrinsics(rotations: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    return torch.cat([rotations, -(rotations @ centres[..., None])], -1)


def centres(cameras: torch.Tensor) -> torch.Tensor:
    return -(cameras[..., :3].mT @ cameras[..., 3:])[..., 0]


def test_the_same_path_has_no_error_wherever_the_world_is():
    truth = path()
    moved = truth.clone()  # another world: x = R x' + t
    moved[..., 3] += truth[..., :3] @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    moved[..., :3] = truth[..., :3] @ turn((1, 2, 3), 70)
    assert max(path_errors(moved, truth).values()) < 1e-9
    assert pair_errors(moved, truth).max() < 1e-5
    assert max(trajectory_errors(moved, truth).values()) < 1e-9


def test_a_path_turned_by_five_degrees_has_a_rotation_error_of_five_and_none_of_translation():
    truth = path()
    turned = truth.clone()
    rotations = torch.stack([turn((0, 1, 1), 5.0) @ r for r in truth[1:, :, :3]])
    turned[1:] = extrinsics(rotations, centres(truth)[1:])
    found = path_errors(turned, truth)
    assert found["rotation_error"] == pytest.approx(5.0, abs=1e-9)
    assert found["translation_error"] == pytest.approx(0.0, abs=1e-9)
    # |R - Q|_F = sqrt(8) sin(angle / 2)
    assert found["cam_mc"] == pytest.approx(math.sqrt(8) * math.sin(math.radians(2.5)), abs=1e-9)


def test_a_scaled_path_has_no_error_of_translation():
    truth = path()
    scaled = torch.cat([truth[..., :3], 3.7 * truth[..., 3:]], -1)
    found = path_errors(scaled, truth)
    assert found["translation_error"] == pytest.approx(0.0, abs=1e-12)
    assert trajectory_errors(scaled, truth)["ate"] == pytest.approx(0.0, abs=1e-9)
    assert trajectory_errors(scaled, truth)["rpe_translation"] == pytest.approx(0.0, abs=1e-9)


def test_translation_errors_of_straight_paths_are_those_of_their_directions():
    along = torch.linspace(0, 1, FRAMES, dtype=torch.float64)[:, None]
    still = torch.eye(3, dtype=torch.float64).expand(FRAMES, 3, 3)
    push = extrinsics(still, along * torch.tensor([0.0, 0, 2.0]))
    truck = extrinsics(still, along * torch.tensor([1.0, 0, 0]))
    # Unit paths along z and x: k / 8 sqrt(2) at frame k.
    expected = math.sqrt(2) * along[1:].mean().item()
    assert path_errors(push, truck)["translation_error"] == pytest.approx(expected)
    # A camera that stays where it is lacks all of the way.
    assert path_errors(push[:1].expand_as(push), truck)["translation_error"] == pytest.approx(along[1:].mean().item())
    assert pair_errors(push, truck).tolist() == pytest.approx([90.0] * 36)
    back = extrinsics(still, -along * torch.tensor([1.0, 0, 0]))
    assert pair_errors(back, truck).abs().max() < 1e-5  # without sign
    assert pair_errors(push[:1].expand_as(push), truck).tolist() == pytest.approx([90.0] * 36)
    with pytest.raises(Unavailable, match="9 camera centres stand in one place"):
        trajectory_errors(push[:1].expand_as(push), truck)
    with pytest.raises(Unavailable, match="9 true cameras stand in one place"):
        trajectory_errors(truck, push[:1].expand_as(push))


def test_a_camera_that_only_turns_is_judged_by_its_rotation():
    pan = torch.stack([turn((0, 1, 0), 3.0 * k) for k in range(FRAMES)])
    place = torch.zeros(FRAMES, 3, dtype=torch.float64)
    slower = torch.stack([turn((0, 1, 0), 2.0 * k) for k in range(FRAMES)])
    errors = pair_errors(extrinsics(slower, place), extrinsics(pan, place))
    first, second = np.triu_indices(FRAMES, 1)
    assert errors.tolist() == pytest.approx((second - first).tolist(), abs=1e-6)


@pytest.mark.parametrize("limit", [30, 15, 5, 3])
def test_auc_is_the_mean_of_the_cumulative_histogram_and_pools_pairs_over_clips(limit):
    errors = np.concatenate([np.random.default_rng(0).gamma(2, 5, 200), [0.0, 1.0, 3.0, 5.0, 15.0, 30.0, 90.0]])
    counts, _ = np.histogram(errors, bins=np.arange(limit + 1))
    expected = np.cumsum(counts / len(errors)).mean()
    clips = [pose_auc(torch.from_numpy(part), limit) for part in (errors[:50], errors[50:])]
    total, count = (sum(x.item() for x in part) for part in zip(*clips, strict=True))
    assert total / count == pytest.approx(expected)
    assert count == len(errors)


def test_auc_of_errors_of_ten_and_a_half_degrees_is_two_thirds():
    total, count = pose_auc(torch.full((7,), 10.5), 30)
    assert total.item() / count.item() == pytest.approx(0.6667, abs=1e-4)


def test_a_similarity_is_found_and_what_is_left_is_the_error():
    source = torch.from_numpy(np.random.default_rng(1).normal(size=(20, 3)))
    rotation = turn((1, -1, 2), 50)
    scale, found, shift = umeyama(source, 2.5 * source @ rotation.T + torch.tensor([1.0, 2.0, 3.0]))
    assert scale.item() == pytest.approx(2.5)
    assert torch.allclose(found, rotation)
    assert shift.tolist() == pytest.approx([1, 2, 3])
    mirrored = umeyama(source, source * torch.tensor([-1.0, 1, 1]))[1]
    assert torch.det(mirrored).item() == pytest.approx(1.0)


def test_trajectory_errors_of_one_step_turned():
    truth = path()
    turned = truth.clone()
    turned[5:] = extrinsics(truth[5:, :, :3] @ turn((1, 0, 0), 4.0), centres(truth)[5:])
    found = trajectory_errors(turned, truth)
    assert found["ate"] == pytest.approx(0.0, abs=1e-9)
    assert found["rpe_rotation"] == pytest.approx(4.0 / math.sqrt(FRAMES - 1))


def test_what_is_no_path_is_refused():
    with pytest.raises(ValueError, match=r"cameras of shape \[1, 3, 4\] found, expected \[F, 3, 4\]"):
        path_errors(path(frames=1), path(frames=1))
