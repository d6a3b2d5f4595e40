"""The beat alignment score: a plain transcription of the published formula, and what it says of dancers."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.signal import argrelextrema

from stagecoach.data.dance_with_music.dancer import Looks, dancer_points, pose_angles
from stagecoach.data.dance_with_music.song import Song
from stagecoach.models.metrics.dance import beat_alignment, motion_beats, smooth


def _published(points: np.ndarray, beats: np.ndarray, smoothing: float, tolerance: float) -> float:
    """Bailando's, step by step: ``points`` [T, J, 2] in pixels, ``beats`` frames of the music's beats."""
    speeds = []
    for k in range(len(points) - 1):
        speeds.append(np.mean([math.dist(points[k + 1, j], points[k, j]) for j in range(points.shape[1])]))
    minima = argrelextrema(gaussian_filter1d(np.array(speeds), smoothing), np.less)[0]
    score = 0.0
    for b in beats:
        score += math.exp(-min((b - m) ** 2 for m in minima) / (2 * tolerance**2))
    return score / len(beats)


@pytest.mark.parametrize(("rate", "smoothing", "tolerance"), [(60.0, 5.0, 3.0), (30.0, 2.5, 1.5)])
def test_the_score_is_the_published_one(rate, smoothing, tolerance):
    random = np.random.default_rng(0)
    steps = random.normal(size=(3, 90, 134, 2)) * (1.2 + np.sin(np.arange(90) / 5))[:, None, None]
    xy = 0.5 + 0.01 * np.cumsum(steps, 1)
    beats = [np.sort(random.choice(90, n, replace=False)) for n in (5, 9, 1)]
    flags = torch.zeros(3, 90, dtype=torch.uint8)
    for b, at in enumerate(beats):
        flags[b, at] = 1
    found, has = beat_alignment(torch.from_numpy(xy), torch.ones(3, 90, 134), flags, 48, 64, rate)
    expected = [_published(xy[b, :, :18] * [64, 48], beats[b], smoothing, tolerance) for b in range(3)]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert has.tolist() == [1, 1, 1]


@pytest.mark.parametrize("length", [40, 6])
def test_smoothing_is_scipys_also_where_the_kernel_is_longer_than_the_clip(length):
    values = np.random.default_rng(1).random((2, length))
    assert np.allclose(smooth(torch.from_numpy(values), 2.5).numpy(), gaussian_filter1d(values, 2.5, axis=1), atol=1e-6)


def _dance(number: int, frames: int = 150) -> tuple[torch.Tensor, torch.Tensor]:
    song, looks = Song.of(7, number), Looks.of(7, number)
    points = np.stack([dancer_points(pose_angles(song, k / 30), looks, 1.0) for k in range(frames)])
    beat = np.zeros(frames, np.uint8)
    at = np.rint(song.beat_times(frames / 30) * 30).astype(int)
    beat[at[at < frames]] = 1
    return torch.from_numpy(points), torch.from_numpy(beat)


def test_dancers_who_stand_still_on_the_beat_score_near_one_and_less_to_a_shifted_song():
    dances = [_dance(n) for n in range(4)]
    xy, beat = (torch.stack(x) for x in zip(*dances, strict=True))
    conf = torch.ones(xy.shape[:3])
    right, _ = beat_alignment(xy, conf, beat, 512, 512)
    shifted, _ = beat_alignment(xy, conf, beat.roll(6, 1), 512, 512)
    # A beat at the very start or end has no slowest moment next to it, and a step counts as its first frame.
    assert (right > 0.75).all(), right
    assert (shifted < 0.5).all(), shifted


def test_points_that_were_not_found_are_left_out_of_the_speed():
    xy = _dance(1, 60)[0][None]
    conf = torch.ones(xy.shape[:3])
    conf[..., 4] = 0.0
    spoilt = xy.clone()
    spoilt[..., 4, :] = torch.rand(spoilt[..., 4, :].shape, dtype=spoilt.dtype)
    assert torch.equal(motion_beats(xy, conf, 64, 64), motion_beats(spoilt, conf, 64, 64))


def test_no_beat_counts_for_nothing_and_no_motion_scores_zero():
    xy, beat = (x[None] for x in _dance(2, 60))
    conf = torch.ones(xy.shape[:3])
    assert [x.item() for x in beat_alignment(xy, conf, torch.zeros_like(beat), 64, 64)] == [0, 0]
    assert [x.item() for x in beat_alignment(xy[:, :1].expand_as(xy), conf, beat, 64, 64)] == [0, 1]
