"""Dances against closed forms: points in pixels, motion in sets, poses that were asked for."""

import math

import pytest
import torch

from stagecoach.models.common.reduce import total
from stagecoach.models.metrics.dance import diversity, kinetic_distance, kinetic_features, pose_error_px, pose_following
from stagecoach.models.metrics.metric import Unavailable


def test_pose_error_is_in_pixels_of_the_picture_over_confident_points():
    target = torch.full((2, 3, 134, 2), 0.5)
    xy = target.clone()
    xy[0, :, 0] += torch.tensor([3 / 64, 4 / 32])  # 3 columns and 4 rows: 5 pixels
    xy[1, :, 1] = torch.nan  # a point that was not found
    conf = torch.ones(2, 3, 134)
    conf[1, :, 1] = 0.3
    error, count = pose_error_px(xy, target, conf, 32, 64)
    assert error.tolist() == pytest.approx([15.0, 0.0])
    assert count.tolist() == [3 * 134, 3 * 133]
    assert [x.item() for x in total((error, count))] == pytest.approx([15.0, 3 * 267])


def test_poses_followed_are_measured_where_both_have_them_and_missed_where_they_were_asked_for():
    asked = torch.rand(1, 2, 134, 2, generator=torch.Generator().manual_seed(0)) * 0.1
    asked[0, :, 0], asked[0, :, 1] = torch.tensor([0.2, 0.2]), torch.tensor([0.7, 0.6])
    conf = torch.ones(1, 2, 134)
    found, found_conf = asked.clone(), conf.clone()
    found[0, 0, 2, 0] += 4 / 64  # 4 pixels; the box has 0.7 * 64 by 0.6 * 32 at most: within a tenth of 44.8
    found[0, 0, 3, 0] += 5 / 64  # not within
    found_conf[0, 1, 4] = 0.0
    conf[0, 1, 5] = 0.0
    result = pose_following(asked, conf, found, found_conf, 32, 64)
    error, count = result["pose_following_px"]
    assert error.item() == pytest.approx(9.0, abs=1e-3)
    assert count.item() == 2 * 18 - 2
    right, of = result["pose_following_pck"]
    assert of.item() == 2 * 18 - 1
    box = (asked[0, 0, :18, 0].max() - asked[0, 0, :18, 0].min()).item() * 64 / 10
    assert 4 < box < 5
    assert right.item() == 2 * 18 - 1 - 2


def _swing(size: float, frames: int = 60, rate: float = 30.0) -> torch.Tensor:
    """Point 4 swings across with ``size`` heights, one turn per second; the rest stands, all of it drifts."""
    time = torch.arange(frames, dtype=torch.float64) / rate
    xy = torch.full((1, frames, 134, 2), 0.5, dtype=torch.float64)
    xy += 0.1 * time[None, :, None, None]
    xy[0, :, 4, 0] += size * torch.sin(2 * math.pi * time) / 2  # a picture twice as wide as high
    return xy


def test_kinetic_features_are_the_mean_squares_of_speed_and_the_size_of_acceleration():
    conf = torch.ones(1, 60, 134)
    features = kinetic_features(_swing(0.1), conf, 100, 200)[0].view(3, 18)
    across = (2 * math.pi * 0.1) ** 2 / 2
    assert features[0, 4].item() == pytest.approx(across, rel=0.03)
    assert features[1].abs().max() < 1e-12
    # The mean of |sin| is 2 / pi.
    assert features[2, 4].item() == pytest.approx((2 * math.pi) ** 2 * 0.1 * 2 / math.pi, rel=0.03)
    others = [k for k in range(18) if k != 4]
    assert features[:, others].abs().max() < 1e-9
    conf[0, ::7, 4] = 0.0
    spoilt = _swing(0.1)
    spoilt[0, ::7, 4] = 9.0
    assert kinetic_features(spoilt, conf, 100, 200)[0].view(3, 18)[0, 4].item() == pytest.approx(across, rel=0.1)
    later = torch.cat([_swing(0.1, 600), _swing(5.0, 60)], 1)
    first = kinetic_features(_swing(0.1, 600), torch.ones(1, 600, 134), 100, 200)
    assert torch.allclose(kinetic_features(later, torch.ones(1, 660, 134), 100, 200), first)
    with pytest.raises(ValueError, match="a dance of 2 frames found"):
        kinetic_features(_swing(0.1, 2), conf[:, :2], 100, 200)


def test_sets_of_dances_are_compared_in_deviations_of_the_true_ones():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(200, 54, generator=generator, dtype=torch.float64) * 7 + 3
    assert kinetic_distance(truth, truth) == pytest.approx(0.0, abs=1e-6)
    shift = truth.std(0, correction=0)
    assert kinetic_distance(truth + 2 * shift, truth) == pytest.approx(54 * 4, rel=1e-6)
    with pytest.raises(Unavailable, match="54 samples of 54 features"):
        kinetic_distance(truth[:54], truth)
    # Independent normal numbers are sqrt(2 D) apart.
    assert diversity(truth, truth) == pytest.approx(math.sqrt(2 * 54), rel=0.02)
    assert diversity(truth[:1].expand(3, 54), truth) == 0.0
    with pytest.raises(Unavailable, match="one dance found"):
        diversity(truth[:1], truth)
