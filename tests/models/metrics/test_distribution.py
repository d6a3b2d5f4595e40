"""Distances of sets against closed forms, and features from a file."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from stagecoach.models.metrics.distribution import (
    FeatureFile,
    clip_features,
    frechet_distance,
    gaussian_distance,
    halves,
    kernel_distance,
    picture_features,
)
from stagecoach.models.metrics.metric import Absent, Unavailable, measured


def _features(count: int = 400, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1.0, (count, 6)))


def test_the_distance_of_two_gaussians_is_the_closed_form():
    # Of diagonal covariances: |m - m'|^2 + sum (s - s')^2.
    found = gaussian_distance(np.zeros(3), np.diag([1.0, 4.0, 9.0]), np.array([1.0, 2, 2]), np.diag([4.0, 4.0, 1.0]))
    assert found == pytest.approx(9 + 1 + 0 + 4)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    one, other = turn @ np.diag([1.0, 4.0, 9.0]) @ turn.T, turn @ np.diag([4.0, 4.0, 1.0]) @ turn.T
    assert gaussian_distance(turn @ np.zeros(3), one, turn @ [1.0, 2, 2], other) == pytest.approx(14)


def test_equal_sets_are_at_no_distance_and_a_shift_is_its_square():
    features = _features()
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(features, features.flip(0)) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(features, features + 3) == pytest.approx(6 * 9, rel=1e-6)


def test_too_few_samples_are_refused_unless_forced():
    few = _features(6)
    with pytest.raises(Unavailable, match="6 samples of 6 features, a Fréchet distance needs at least one more"):
        frechet_distance(few, _features())
    assert frechet_distance(few, few, force=True) == pytest.approx(0.0, abs=1e-4)
    assert isinstance(measured(frechet_distance, few[:1], few, force=True), Absent)
    with pytest.raises(ValueError, match=r"features \[400, 6\] and \[400, 5\] found"):
        frechet_distance(_features(), _features()[:, :5])


def test_ten_halves_say_how_far_the_number_goes():
    found = halves(_features(), _features(shift=1.0, seed=1))
    assert len(found) == 10
    assert len(set(found)) == 10
    assert found == halves(_features(), _features(shift=1.0, seed=1))
    assert np.mean(found) == pytest.approx(6, rel=0.25)
    with pytest.raises(Unavailable, match="5 samples of 6 features"):
        halves(_features(10), _features(10))


def test_kernel_distance_is_about_zero_for_one_distribution_and_the_unbiased_estimate():
    same = kernel_distance(_features(), _features(seed=1), subsets=20, size=200)
    assert abs(same) < 0.05
    a, b = _features(5).numpy(), _features(5, 1.0, 1).numpy()
    kernel = lambda x, y: (x @ y / 6 + 1) ** 3  # noqa: E731
    off = [(i, j) for i in range(5) for j in range(5) if i != j]
    expected = sum(kernel(x[i], x[j]) for x in (a, b) for i, j in off) / 20
    expected -= 2 * sum(kernel(x, y) for x in a for y in b) / 25
    assert kernel_distance(_features(5), _features(5, 1.0, 1), subsets=3) == pytest.approx(expected)
    assert isinstance(measured(kernel_distance, a[:1], b), Absent)


class _Video(nn.Module):
    """As the published files: means of colours over a clip, times 2 where features are not asked for."""

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False):
        x = x.float()
        if rescale or resize:
            x = x + 100.0
        y = x.flatten(2).mean(2)
        return y if return_features else 2 * y


class _Plain(nn.Module):
    def forward(self, x: torch.Tensor):
        return x.float().mean((2, 3))


def test_clips_and_pictures_have_the_features_of_a_file(tmp_path):
    torch.jit.script(_Video()).save(str(tmp_path / "i3d.pt"))
    torch.jit.script(_Plain()).save(str(tmp_path / "inception.pt"))
    colours = torch.tensor([[0.0, 0.5, 1.0], [0.25, 0.25, 0.75]])
    clips = [c[None, :, None, None].expand(18, 3, 32, 40) for c in colours]
    features = clip_features(FeatureFile(tmp_path / "i3d.pt", torch.device("cpu")), clips)
    assert torch.allclose(features, 2 * colours - 1, atol=1e-5)
    pictures = picture_features(FeatureFile(tmp_path / "inception.pt", torch.device("cpu")), [c[0] for c in clips])
    assert torch.allclose(pictures, (colours * 255).round(), atol=1e-3)
    with pytest.raises(Unavailable, match="a clip of 15 frames found, FVD is of 16"):
        clip_features(FeatureFile(tmp_path / "i3d.pt", torch.device("cpu")), [clips[0][:15]])


def test_fvd_of_files_features_is_that_of_the_colours(tmp_path):
    torch.jit.script(_Video()).save(str(tmp_path / "i3d.pt"))
    extractor = FeatureFile(tmp_path / "i3d.pt", torch.device("cpu"))
    random = np.random.default_rng(0)
    colours = torch.from_numpy(random.uniform(0.2, 0.6, (8, 3))).float()
    clips = [c[None, :, None, None].expand(16, 3, 8, 8) for c in colours]
    brighter = [clip + 0.1 for clip in clips]
    found = frechet_distance(clip_features(extractor, brighter), clip_features(extractor, clips))
    assert found == pytest.approx(3 * 0.2**2, rel=1e-3)
    assert math.isclose(
        frechet_distance(clip_features(extractor, clips), clip_features(extractor, clips)), 0, abs_tol=1e-9
    )


def test_a_file_that_is_missing_or_none_makes_the_metric_absent(tmp_path):
    assert "no such file" in measured(FeatureFile, tmp_path / "i3d.pt", torch.device("cpu")).reason
    (tmp_path / "text.pt").write_text("nothing")
    assert "not loadable as TorchScript" in measured(FeatureFile, tmp_path / "text.pt", torch.device("cpu")).reason
