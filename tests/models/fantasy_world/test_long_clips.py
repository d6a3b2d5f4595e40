"""Clips in a row: one world and one unit, and pictures that go on where the last ones ended."""

import numpy as np
import pytest
import torch
from torch import nn

from stagecoach.data.fantasy_world.cameras import canonicalise, unproject
from stagecoach.models.fantasy_world.config import SIZES
from stagecoach.models.fantasy_world.inputs import FantasyWorldOutput
from stagecoach.models.fantasy_world.long_clips import join, last_distance, sample_long, unit_between
from tests.models.fantasy_world.test_pipeline import image_to_video

FRAMES, TOTAL, HEIGHT, WIDTH = 5, 13, 8, 12
LENS = torch.tensor([9.0, 9.0, WIDTH / 2, HEIGHT / 2])


def scene():
    """A path of ``TOTAL`` cameras and their depth: [T, 3, 4], [T, H, W]."""
    g = torch.Generator().manual_seed(2)
    angles = torch.linspace(0, 0.6, TOTAL, dtype=torch.float64)
    poses = torch.zeros(TOTAL, 3, 4, dtype=torch.float64)
    poses[:, 0, 0], poses[:, 0, 2], poses[:, 2, 0], poses[:, 2, 2] = (
        f(angles) for f in (torch.cos, torch.sin, lambda a: -a.sin(), torch.cos)
    )
    poses[:, 1, 1] = 1
    poses[:, :, 3] = torch.stack([angles, 0.2 * angles**2, -0.5 * angles], -1)
    return poses, 1 + torch.rand(TOTAL, HEIGHT, WIDTH, generator=g)


def seen(start: int, unit: float) -> FantasyWorldOutput:
    """What a perfect network says of ``FRAMES`` frames from ``start`` in units of ``unit``."""
    poses, depth = scene()
    part = slice(start, start + FRAMES)
    extrinsics, depth = canonicalise(poses[part]), depth[part] / unit
    extrinsics[..., 3] /= unit
    extrinsics, lenses = extrinsics.float(), LENS.expand(FRAMES, 4)
    return FantasyWorldOutput(
        frames=np.random.default_rng(start).random((1, FRAMES, HEIGHT, WIDTH, 3)),
        depth=depth[None],
        depth_confidence=torch.ones_like(depth)[None],
        points=unproject(depth, lenses, extrinsics)[None],
        points_confidence=torch.ones_like(depth)[None],
        extrinsics=extrinsics[None],
        intrinsics=lenses[None],
        sigma_read=0.1,
    )


UNITS = {0: 1.0, 4: 2.5, 8: 0.7}


def test_joined_clips_are_the_whole_scene_in_the_unit_and_world_of_the_first():
    joined = join([seen(start, unit) for start, unit in UNITS.items()])
    poses, depth = scene()
    extrinsics = canonicalise(poses).float()
    torch.testing.assert_close(joined.extrinsics[0], extrinsics, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(joined.depth[0], depth, atol=1e-5, rtol=1e-5)
    points = unproject(depth, LENS.expand(TOTAL, 4), extrinsics)
    torch.testing.assert_close(joined.points[0], points, atol=1e-4, rtol=1e-4)
    assert joined.frames.shape == (1, TOTAL, HEIGHT, WIDTH, 3)
    assert joined.intrinsics.shape == (1, TOTAL, 4)
    assert unit_between(seen(4, 2.5), seen(8, 0.7)) == pytest.approx(0.7 / 2.5)


class Recorder:
    """A pipeline that notes its requests and answers as a perfect network would."""

    def __init__(self, config):
        self.transformer, self.requests, self.answers = nn.Module(), [], []
        self.transformer.network = nn.Module()
        self.transformer.network.config = config

    def __call__(self, **request):
        self.requests.append(request)
        start = 4 * len(self.answers)
        self.answers.append(seen(start, UNITS[start]))
        return self.answers[-1]


def test_each_clip_starts_with_the_last_picture_and_moves_in_units_of_its_own_scene():
    pipeline, (poses, _) = Recorder(image_to_video()), scene()
    world = torch.tensor([[0.0, 0, 1, 2], [0, 1, 0, 3], [-1, 0, 0, 4], [0, 0, 0, 1]], dtype=torch.float64)
    whole = torch.cat([poses, torch.tensor([0.0, 0, 0, 1], dtype=torch.float64).expand(TOTAL, 1, 4)], 1) @ world
    lenses = LENS + torch.arange(TOTAL)[:, None]
    found = sample_long(pipeline, "first.png", whole, lenses, FRAMES, prompt="a room")
    assert found.frames.shape[1] == TOTAL
    assert [r["image"] if i == 0 else None for i, r in enumerate(pipeline.requests)] == ["first.png", None, None]
    for i, request in enumerate(pipeline.requests):
        part = slice(4 * i, 4 * i + FRAMES)
        assert request["prompt"] == "a room"
        assert torch.equal(request["intrinsics"], lenses[part])
        expected = canonicalise(poses[part])
        if i:
            before = pipeline.answers[i - 1]
            assert np.abs(request["image"] - 255 * before.frames[0, -1]).max() <= 0.5
            expected[..., 3] /= UNITS[4 * i - 4] * last_distance(before)
        torch.testing.assert_close(request["cameras"], expected, atol=1e-5, rtol=1e-5)


def test_a_path_that_is_no_row_of_clips_and_a_network_without_pictures_are_refused():
    poses, lenses = scene()[0], LENS.expand(TOTAL, 4)
    with pytest.raises(ValueError, match=r"12 frames are no row of clips of 5; give 13"):
        sample_long(Recorder(image_to_video()), None, poses[:12], lenses[:12], FRAMES)
    with pytest.raises(ValueError, match="text-to-video and cannot go on from a picture"):
        sample_long(Recorder(SIZES["tiny"]), None, poses, lenses, FRAMES)
