"""Depth: one range for a clip, numbers that come back."""

import json

import numpy as np
import pytest
from PIL import Image

from stagecoach.data.fantasy_world.readers import read_frames
from stagecoach.data.outputs.depth import write_depth, write_depth_pictures, write_depth_video
from stagecoach.data.pictures import INVALID, depth_colours, depth_limits


@pytest.fixture
def depth() -> np.ndarray:
    """A wall at 2 next to a thing that comes from 4 to 0.5, and sky; [16, 32, 48]."""
    maps = np.full((16, 32, 48), 2.0, np.float32)
    maps[:, :, 16:32] = np.linspace(4, 0.5, 16)[:, None, None]
    maps[:, :, 32:] = 0
    return maps


def test_the_colours_of_a_clip_have_one_range(depth, tmp_path):
    """The wall keeps its colour while what is nearest changes; frame by frame it would not."""
    limits = write_depth_video(tmp_path / "depth.mp4", depth, 16)
    assert limits == pytest.approx(np.percentile(1 / depth[depth > 0], (2, 98)))
    found = np.stack(list(read_frames(tmp_path / "depth.mp4"))).astype(int)
    assert len(found) == 16
    wall, thing, sky = (found[:, 16, x] for x in (8, 24, 40))
    assert np.ptp(wall, axis=0).max() <= 4
    assert np.ptp(thing, axis=0).max() > 100
    assert np.abs(wall - depth_colours(depth, limits)[:, 16, 8]).max() <= 8
    assert np.abs(sky - INVALID).max() <= 3
    alone = np.stack([depth_colours(frame) for frame in depth])[:, 16, 8].astype(int)
    assert np.ptp(alone, axis=0).max() > 100


def test_a_given_range_serves_two_clips(depth, tmp_path):
    assert write_depth_video(tmp_path / "depth.mp4", depth[:2], 16, (0.1, 3.0)) == (0.1, 3.0)
    found = next(read_frames(tmp_path / "depth.mp4"))
    assert np.abs(found[16, 8].astype(int) - depth_colours(depth, (0.1, 3.0))[0, 16, 8]).max() <= 8


def test_a_clip_without_depth_is_grey(tmp_path):
    assert write_depth_video(tmp_path / "depth.mp4", np.zeros((3, 16, 16), np.float32), 16) is None
    assert np.abs(next(read_frames(tmp_path / "depth.mp4")).astype(int) - INVALID[0]).max() <= 2
    assert depth_limits(np.full((2, 2), np.inf)) is None


def test_raw_depth_and_confidence_come_back_and_what_is_not_finite_is_invalid(depth, tmp_path):
    confidence = 1 + np.exp(np.random.default_rng(0).normal(size=depth.shape))
    depth[0, 0, :3] = np.nan, np.inf, 1e6
    confidence[0, 0, 0] = 1e9
    write_depth(tmp_path / "depth.npz", depth, confidence)
    found = np.load(tmp_path / "depth.npz")
    assert found["depth"].dtype == found["confidence"].dtype == np.float16
    np.testing.assert_array_equal(found["depth"][0, 0, :4], [0, 0, 0, 2])
    np.testing.assert_allclose(found["depth"][1:], depth[1:], rtol=1e-3)
    np.testing.assert_allclose(found["confidence"][1:], confidence[1:], rtol=1e-3)
    assert found["confidence"][0, 0, 0] == 65504
    with pytest.raises(ValueError, match=r"confidence of shape \(1, 2\) found, expected \(16, 32, 48\)"):
        write_depth(tmp_path / "depth.npz", depth, np.zeros((1, 2)))
    write_depth(tmp_path / "again.npz", depth, confidence)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "depth.npz").read_bytes()


def test_pictures_of_16_bits_come_back_with_their_scale(depth, tmp_path):
    depth[0, 0, 0] = 1e-9
    scale = write_depth_pictures(tmp_path / "png", depth)
    described = json.loads((tmp_path / "png" / "scale.json").read_text())
    assert described["scale"] == scale == 4 / 65534
    pictures = [Image.open(tmp_path / "png" / f"frame_{k:05d}.png") for k in range(16)]
    found = np.stack([np.asarray(picture).astype(np.uint16) for picture in pictures])
    np.testing.assert_allclose(found * scale, depth, atol=scale)
    np.testing.assert_array_equal(found > 0, depth > 0)
    assert found.max() == 65534
    write_depth_pictures(tmp_path / "png", depth[:3])  # a shorter clip leaves nothing of the longer one
    assert len(list((tmp_path / "png").iterdir())) == 4
