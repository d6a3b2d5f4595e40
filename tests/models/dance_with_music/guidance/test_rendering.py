"""Skeletons and face masks on the device."""

import numpy as np
import pytest
import torch

from stagecoach.data.dance_with_music.dancer import KEY_POSES, Looks, dancer_points
from stagecoach.data.dance_with_music.skeleton import draw_skeleton
from stagecoach.models.dance_with_music.guidance import rendering
from stagecoach.models.dance_with_music.guidance.rendering import face_masks, render_skeletons


def dancer(number=0):
    """float64 [134, 2]."""
    return dancer_points(KEY_POSES[number, 0], Looks.of(0, number), 1.0)


def render(xy, conf, height, width):
    return (
        render_skeletons(torch.tensor(xy)[None, None].float(), torch.tensor(conf)[None, None].float(), height, width)[
            0, 0
        ]
        .permute(1, 2, 0)
        .numpy()
    )


@pytest.mark.parametrize(("side", "overlap"), [(128, 0.65), (512, 0.85)])
@pytest.mark.parametrize("number", [0, 1])
def test_the_skeleton_is_the_one_that_pillow_draws(side, overlap, number):
    """Pillow's edges are hard and its lines begin and end on whole pixels: the larger the picture, the less."""
    xy, conf = dancer(number), np.ones(134)
    expected = draw_skeleton(np.zeros((side, side, 3), np.uint8), xy, conf) / 255
    found = render(xy, conf, side, side)
    drawn, theirs = found.max(-1) > 0.5, expected.max(-1) > 0.5
    assert (drawn & theirs).sum() / (drawn | theirs).sum() > overlap
    assert np.abs(found.mean((0, 1)) / expected.mean((0, 1)) - 1).max() < 0.15
    both = drawn & theirs & (found.max(-1) > 0.99)
    assert np.abs(found[both] - expected[both]).mean() < 0.06


def test_a_limb_lies_where_its_points_are_in_a_picture_that_is_not_square():
    """The right upper arm alone: x goes with width, y with height."""
    xy, conf = np.zeros((134, 2)), np.zeros(134)
    xy[2], xy[3], conf[2], conf[3] = (0.25, 0.1), (0.25, 0.3), 1, 1
    found = render(xy, conf, 96, 192).max(-1)
    rows, columns = np.nonzero(found > 0.4)
    assert columns.min() >= 46
    assert columns.max() <= 49
    assert abs(rows.min() - 0.1 * 96) <= 2
    assert abs(rows.max() - 0.3 * 96) <= 2


def test_points_that_were_not_found_are_left_out():
    xy = dancer()
    assert not render(xy, np.full(134, 0.29), 64, 64).any()
    assert render(xy, np.full(134, 0.31), 64, 64).any()


def test_frames_and_samples_keep_their_places_whatever_is_drawn_at_once(monkeypatch):
    xy = torch.stack([torch.tensor(dancer(k)).float() for k in (0, 1, 2, 3, 0, 1)]).unflatten(0, (2, 3))
    conf = torch.ones(2, 3, 134)
    whole = render_skeletons(xy, conf, 64, 48)
    assert whole.shape == (2, 3, 3, 64, 48)
    monkeypatch.setattr(rendering, "PICTURE_CHUNK", 64 * 48 * 2)
    torch.testing.assert_close(render_skeletons(xy, conf, 64, 48), whole, rtol=0, atol=0)
    torch.testing.assert_close(render_skeletons(xy[1:, 2:], conf[1:, 2:], 64, 48), whole[1:, 2:], rtol=0, atol=0)


def test_gradients_pull_points_to_where_they_are_wanted():
    """A limb next to its target: the derivative of the squared difference moves it there."""
    xy, conf = torch.zeros(1, 1, 134, 2), torch.zeros(1, 1, 134)
    xy[..., 2, :], xy[..., 3, :], conf[..., 2:4] = torch.tensor([0.5, 0.2]), torch.tensor([0.5, 0.8]), 1
    target = render_skeletons(xy, conf, 288, 288)  # lines of three pixels
    moved = xy.clone()
    moved[..., 2:4, 0] += 1.5 / 288
    moved.requires_grad_()
    (render_skeletons(moved, conf, 288, 288) - target).square().sum().backward()
    assert (moved.grad[0, 0, 2:4, 0] > 0).all()
    assert not moved.grad[0, 0, 4:].any()


def test_the_gradient_is_the_difference_quotient():
    torch.manual_seed(0)
    xy = torch.tensor(dancer())[None, None].float().requires_grad_()
    weight = torch.randn(3, 64, 64)

    def value(points):
        return (render_skeletons(points, torch.ones(1, 1, 134), 64, 64) * weight).sum().double()

    value(xy).backward()
    step = xy.grad / xy.grad.abs().max() * 2e-4
    with torch.no_grad():
        quotient = (value(xy + step) - value(xy - step)) / 2
    assert abs(quotient - (xy.grad * step).sum()) < 0.05 * abs(quotient)


def test_masks_are_one_inside_the_box():
    g = torch.Generator().manual_seed(0)
    low, size = torch.rand(2, 3, 2, generator=g) * 0.5, torch.rand(2, 3, 2, generator=g) * 0.5
    boxes, valid = torch.cat([low, low + size], -1), torch.tensor([[1, 1, 0], [1, 0, 1]])
    found = face_masks(boxes.half(), valid, 6, 9)
    for b in range(2):
        for t in range(3):
            x0, y0, x1, y1 = boxes[b, t].half().tolist()
            for i in range(6):
                for j in range(9):
                    inside = x0 <= (j + 0.5) / 9 < x1 and y0 <= (i + 0.5) / 6 < y1
                    assert found[b, t, i, j] == float(inside and bool(valid[b, t]))
