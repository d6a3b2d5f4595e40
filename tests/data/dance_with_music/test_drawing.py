"""Skeletons against DWPose's drawing, pixel by pixel, with gradients and on pictures."""

import colorsys
import math

import numpy as np
import pytest
import torch

from stagecoach.data.dance_with_music import drawing
from stagecoach.data.dance_with_music.dancer import KEY_POSES, Looks, dancer_points
from stagecoach.data.dance_with_music.drawing import draw_skeleton, dwpose_pen, render_skeletons, stable_animator_pen

LIMBS = ((2, 3), (2, 6), (3, 4), (4, 5), (6, 7), (7, 8), (2, 9), (9, 10), (10, 11), (2, 12), (12, 13), (13, 14))
LIMBS += ((2, 1), (1, 15), (15, 17), (1, 16), (16, 18))
FINGERS = tuple((0 if k % 4 == 0 else k, k + 1) for k in range(20))


def dancer(number=0):
    """float64 [134, 2]."""
    return dancer_points(KEY_POSES[number, 0], Looks.of(0, number), 1.0)


class Canvas:
    """uint8 picture with OpenCV's filled shapes: whole pixels, no soft edges."""

    def __init__(self, height, width):
        self.pixels = np.zeros((height, width, 3), np.uint8)

    def fill(self, centre, reach, inside, colour):
        height, width = self.pixels.shape[:2]
        (x, y), r = centre, math.ceil(reach) + 2
        rows, columns = slice(max(y - r, 0), min(y + r, height)), slice(max(x - r, 0), min(x + r, width))
        dy, dx = np.mgrid[rows, columns] - np.array([y, x])[:, None, None]
        self.pixels[rows, columns][inside(dx, dy)] = np.minimum(np.array(colour, int), 255)

    def disc(self, x, y, radius, colour):
        self.fill((x, y), radius, lambda dx, dy: dx**2 + dy**2 <= radius**2, colour)

    def line(self, start, end, colour):
        (x0, y0), (x1, y1) = start, end
        square = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1)

        def inside(dx, dy):
            t = ((dx * (x1 - x0) + dy * (y1 - y0)) / square).clip(0, 1)
            return (dx - t * (x1 - x0)) ** 2 + (dy - t * (y1 - y0)) ** 2 <= 1.6**2

        self.fill(start, math.sqrt(square), inside, colour)

    def ellipse(self, centre, half, angle, colour):
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))

        def inside(dx, dy):
            return ((dx * cos + dy * sin) / (half + 0.5)) ** 2 + ((dy * cos - dx * sin) / 4.6) ** 2 <= 1

        self.fill(centre, half + 5, inside, colour)


def dwpose(xy, conf, height, width, fade):
    """DWPose's drawing in whole pixels; with ``fade`` StableAnimator's, on the canvas."""
    canvas, points = Canvas(height, width), xy * [width, height]
    whole = points.astype(int)
    paint = [tuple(255 * part for part in colorsys.hsv_to_rgb(k / 18, 1, 1)) for k in range(18)]
    for (a, b), colour in zip(LIMBS, paint, strict=False):
        a, b = a - 1, b - 1
        if min(conf[a], conf[b]) < 0.3:
            continue
        (x0, y0), (x1, y1) = points[a], points[b]
        centre, half = (int((x0 + x1) / 2), int((y0 + y1) / 2)), int(math.dist(points[a], points[b]) / 2)
        angle = int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
        canvas.ellipse(centre, half, angle, [int(part * (conf[a] * conf[b] if fade else 1)) for part in colour])
    canvas.pixels = (canvas.pixels * 0.6).astype(np.uint8)
    for k in range(18):
        if conf[k] >= 0.3:
            canvas.disc(*whole[k], 4, [part * (conf[k] if fade else 1) for part in paint[k]])
    least = 0 if fade else 0.3
    for hand in (92, 113):
        for k, (a, b) in enumerate(FINGERS):
            a, b = hand + a, hand + b
            if min(conf[a], conf[b]) >= least and min(*whole[a], *whole[b]) > 0:
                strength = int(255 * (conf[a] * conf[b] if fade else 1))
                canvas.line(whole[a], whole[b], [part * strength for part in colorsys.hsv_to_rgb(k / 20, 1, 1)])
        for k in range(hand, hand + 21):
            if conf[k] >= least and min(whole[k]) > 0:
                canvas.disc(*whole[k], 4, (0, 0, 255 * (conf[k] if fade else 1)))
    for k in range(24, 92):
        if conf[k] >= least and min(whole[k]) > 0:
            canvas.disc(*whole[k], 3, (255 * (conf[k] if fade else 1),) * 3)
    return canvas.pixels


def shrunk(pixels, height, width):
    """OpenCV's bilinear resize: two neighbours along each side, whatever the factor."""
    for axis, side in enumerate((height, width)):
        at = ((np.arange(side) + 0.5) * pixels.shape[axis] / side - 0.5).clip(0, pixels.shape[axis] - 1)
        low = at.astype(int)
        part = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        high = np.minimum(low + 1, pixels.shape[axis] - 1)
        pixels = pixels.take(low, axis) * (1 - part) + pixels.take(high, axis) * part
    return pixels


def render(xy, conf, height, width, pen):
    given = (torch.tensor(np.asarray(part))[None, None].float() for part in (xy, conf))
    return render_skeletons(*given, height, width, pen)[0, 0].permute(1, 2, 0).numpy()


def alike(found, expected, correlation):
    """Colours, how much of each, and where; edges are soft here and lie within half a pixel."""
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > correlation
    assert np.abs(found.mean((0, 1)) / expected.mean((0, 1)) - 1).max() < 0.06
    ink = (found.max(-1) > 0.05) | (expected.max(-1) > 0.05)
    assert np.abs(found - expected)[ink].mean() < 0.07


@pytest.mark.parametrize("number", [0, 1])
def test_a_skeleton_is_drawn_as_dwpose_draws_it(number):
    """At the picture's size, without regard to confidences above 0.3. OpenCV's picture differs from ours by 0.054 on
    what is drawn, its correlation is 0.96 (eight dancers, opencv 5.0)."""
    conf = np.random.default_rng(number).uniform(0.25, 1, 134)
    expected = dwpose(dancer(number), conf, 512, 512, fade=False) / 255
    alike(render(dancer(number), conf, 512, 512, dwpose_pen(512, 512)), expected, 0.95)


@pytest.mark.parametrize(("height", "width", "canvas"), [(512, 512, (2160, 2160)), (576, 1024, (2160, 3840))])
def test_a_skeleton_is_drawn_as_stable_animator_draws_it(height, width, canvas):
    """On a canvas of 2160 with colours by confidence, then every few pixels one. OpenCV's picture differs from ours by
    0.030 to 0.033 on what is drawn, its correlation is 0.94 to 0.95."""
    conf = np.random.default_rng(1).uniform(0.1, 1, 134)
    expected = shrunk(dwpose(dancer(1), conf, *canvas, fade=True), height, width) / 255
    alike(render(dancer(1), conf, height, width, stable_animator_pen(height, width)), expected, 0.92)


def test_colours_and_sizes_are_the_published_ones():
    """The right upper arm (third, 255 170 0) at 0.6 and half width 4, its joints at full colour, no feet."""
    xy, conf = np.zeros((134, 2)), np.zeros(134)
    xy[2], xy[3], conf[2], conf[3] = (0.25, 0.1), (0.25, 0.9), 1, 0.5
    found = render(xy, conf, 512, 512, dwpose_pen(512, 512))
    assert found[256, 128] == pytest.approx(np.array([1, 170 / 255, 0]) * 0.6, abs=1e-6)
    assert 8 <= (found[256].max(-1) > 0.3).sum() <= 10
    assert found[51, 128] == pytest.approx([1, 170 / 255, 0], abs=1e-6)
    assert found[460, 128] == pytest.approx([1, 1, 0], abs=1e-6)
    faded = render(xy, conf, 512, 512, stable_animator_pen(512, 512))
    assert faded[256].max(0) == pytest.approx(np.array([1, 170 / 255, 0]) * 0.3, abs=1e-6)
    xy[18:24], conf[18:24] = (0.7, 0.7), 1
    assert np.array_equal(render(xy, conf, 512, 512, dwpose_pen(512, 512)), found)


def test_a_limb_lies_where_its_points_are_in_a_picture_that_is_not_square():
    xy, conf = np.zeros((134, 2)), np.zeros(134)
    xy[2], xy[3], conf[2], conf[3] = (0.25, 0.1), (0.25, 0.3), 1, 1
    rows, columns = np.nonzero(render(xy, conf, 96, 192, dwpose_pen(96, 192)).max(-1) > 0.3)
    assert 46 <= columns.min() <= columns.max() <= 49
    assert abs(rows.min() - 0.1 * 96) <= 2
    assert abs(rows.max() - 0.3 * 96) <= 2


def test_points_that_were_not_found_are_left_out():
    xy = dancer()
    assert not render(xy, np.full(134, 0.29), 64, 64, dwpose_pen(64, 64)).any()
    assert render(xy, np.full(134, 0.31), 64, 64, dwpose_pen(64, 64)).any()
    assert not render(xy, np.zeros(134), 64, 64, stable_animator_pen(64, 64)).any()
    assert not render(np.zeros((134, 2)), np.where(np.arange(134) < 24, 0, 1.0), 64, 64, dwpose_pen(64, 64)).any()


def test_frames_and_samples_keep_their_places_whatever_is_drawn_at_once(monkeypatch):
    xy = torch.stack([torch.tensor(dancer(k)).float() for k in (0, 1, 2, 3, 0, 1)]).unflatten(0, (2, 3))
    conf, pen = torch.ones(2, 3, 134), dwpose_pen(64, 48)
    whole = render_skeletons(xy, conf, 64, 48, pen)
    assert whole.shape == (2, 3, 3, 64, 48)
    monkeypatch.setattr(drawing, "AT_ONCE", 64 * 48 * 2)
    assert torch.equal(render_skeletons(xy, conf, 64, 48, pen), whole)
    assert torch.equal(render_skeletons(xy[1:, 2:], conf[1:, 2:], 64, 48, pen), whole[1:, 2:])
    assert render_skeletons(xy.to("meta"), conf.to("meta"), 64, 48, pen).shape == whole.shape


def test_gradients_pull_points_to_where_they_are_wanted():
    """A limb next to its target: the derivative of the squared difference moves it there."""
    xy, conf, pen = torch.zeros(1, 1, 134, 2), torch.zeros(1, 1, 134), dwpose_pen(288, 288)
    xy[..., 2, :], xy[..., 3, :], conf[..., 2:4] = torch.tensor([0.5, 0.2]), torch.tensor([0.5, 0.8]), 1
    target = render_skeletons(xy, conf, 288, 288, pen)
    moved = xy.clone()
    moved[..., 2:4, 0] += 1.5 / 288
    moved.requires_grad_()
    (render_skeletons(moved, conf, 288, 288, pen) - target).square().sum().backward()
    assert (moved.grad[0, 0, 2:4, 0] > 0).all()
    assert not moved.grad[0, 0, 4:].any()


def test_the_gradient_is_the_difference_quotient():
    g = torch.Generator().manual_seed(0)
    xy = torch.tensor(dancer())[None, None].float().requires_grad_()
    weight = torch.randn(3, 64, 64, generator=g)

    def value(points):
        pen = dwpose_pen(64, 64)
        return (render_skeletons(points, torch.ones(1, 1, 134), 64, 64, pen) * weight).sum().double()

    value(xy).backward()
    step = xy.grad / xy.grad.abs().max() * 2e-4
    with torch.no_grad():
        quotient = (value(xy + step) - value(xy - step)) / 2
    assert abs(quotient - (xy.grad * step).sum()) < 0.05 * abs(quotient)


def test_a_picture_keeps_what_nothing_is_drawn_over():
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    before = image.copy()
    drawn = draw_skeleton(image, dancer(), np.ones(134))
    alone = draw_skeleton(np.zeros_like(image), dancer(), np.ones(134))
    black, white = (render(dancer(), np.ones(134), 64, 80, dwpose_pen(64, 80)), alone / 255)
    assert np.array_equal(image, before)
    assert np.abs(black - white).max() < 0.003
    assert (drawn != image).any()
    bare = ~alone.any(-1)
    assert (drawn[bare] == image[bare]).mean() > 0.99
