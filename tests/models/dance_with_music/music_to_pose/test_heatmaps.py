"""Acceptance test 2 of the design page: heatmaps are distributions, and their means are the points."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.models.dance_with_music.music_to_pose.heatmaps import (
    axis_marginals,
    coordinates,
    gaussian_marginals,
    heatmap,
    marginals,
    mean_position,
    outer,
    render_heatmaps,
)

FULL, SIGMA, TAU = 64, 2.0, 0.1


def logits(kind, seed=0, resolution=16):
    g = torch.Generator().manual_seed(seed)
    if kind == "full2d":
        return {"logits": torch.randn(2, 3, 134, resolution, resolution, generator=g)}
    return {name: torch.randn(2, 3, 134, resolution, generator=g) for name in ("logits_x", "logits_y")}


@pytest.mark.parametrize("kind", ["factorised", "full2d"])
def test_a_heatmap_sums_to_one_per_point_and_frame(kind):
    maps = heatmap(logits(kind), TAU)
    assert maps.shape == (2, 3, 134, 16, 16)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum((-1, -2)), torch.ones(2, 3, 134))


@pytest.mark.parametrize("kind", ["factorised", "full2d"])
def test_coordinates_are_the_heatmaps_mean_pixel_centre(kind):
    output = logits(kind)
    maps, where = heatmap(output, TAU), (torch.arange(16) + 0.5) / 16
    x = (maps * where).sum((-1, -2))
    y = (maps * where[:, None]).sum((-1, -2))
    torch.testing.assert_close(coordinates(output, TAU), torch.stack([x, y], -1))
    for found, expected in zip(axis_marginals(output, TAU), (maps.sum(-2), maps.sum(-1)), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_temperature_divides_the_logits():
    x = torch.tensor([[0.0, 0.1]])
    torch.testing.assert_close(marginals(x, 0.1), torch.tensor([[1.0, 2.718281828]]) / 3.718281828)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.15, 0.85), st.floats(0.15, 0.85))
def test_the_mean_of_a_rendered_gaussian_is_its_centre_within_a_twentieth_of_a_pixel(x, y):
    point = torch.tensor([[[[x, y]]]])
    found = torch.stack([mean_position(p) for p in gaussian_marginals(point, FULL, SIGMA)], -1)
    assert (found - point).abs().max() * FULL < 0.05


def test_a_perfect_prediction_gives_the_points_back():
    """Logits that are tau times the Gaussian's own: the way from points through logits to points."""
    point = 0.2 + 0.6 * torch.rand(2, 3, 134, 2, generator=torch.Generator().manual_seed(1))
    x, y = gaussian_marginals(point, FULL, SIGMA)
    output = {"logits_x": TAU * x.log(), "logits_y": TAU * y.log()}
    assert (coordinates(output, TAU) - point).abs().max() * FULL < 0.05
    torch.testing.assert_close(heatmap(output, TAU), outer(x, y))


def test_x_goes_along_columns_and_y_along_rows():
    """A point far right and high up."""
    point = torch.tensor([[[[50.5 / 64, 10.5 / 64]]]])
    maps = render_heatmaps(point, torch.ones(1, 1, 1), FULL, SIGMA)[0, 0, 0]
    assert divmod(int(maps.argmax()), FULL) == (10, 50)


def test_rendered_maps_are_the_two_dimensional_gaussian_times_the_confidence():
    point, conf = torch.tensor([[[[0.6, 0.3]]]]), torch.tensor([[[0.7]]])
    row, column = torch.meshgrid(torch.arange(FULL) + 0.5, torch.arange(FULL) + 0.5, indexing="ij")
    expected = torch.exp(-((column - 0.6 * FULL) ** 2 + (row - 0.3 * FULL) ** 2) / (2 * SIGMA**2))
    found = render_heatmaps(point, conf, FULL, SIGMA)[0, 0, 0]
    torch.testing.assert_close(found, 0.7 * expected / expected.sum(), atol=1e-7, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.floats(-50, 50), st.floats(-50, 50))
def test_points_far_outside_stay_distributions(x, y):
    for p in gaussian_marginals(torch.tensor([x, y]), FULL, SIGMA):
        assert torch.isfinite(p).all()
        assert abs(float(p.sum()) - 1) < 1e-5
