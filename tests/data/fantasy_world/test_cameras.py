"""Poses: the reference numbers, round trips, and what canonical means."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.data.fantasy_world.cameras import (
    canonicalise,
    decode_pose,
    encode_pose,
    pixel_rays,
    project,
    quaternion_from_rotation,
    rotation_from_quaternion,
    unproject,
)

HEIGHT, WIDTH = 336, 592


def rotation(axis: str, degrees: float) -> torch.Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows = {"x": [[1, 0, 0], [0, c, -s], [0, s, c]], "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]]}[axis]
    return torch.tensor(rows, dtype=torch.float64)


def random_cameras(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    turn = rotation_from_quaternion(torch.randn(*shape, 4, generator=generator, dtype=torch.float64))
    return torch.cat([turn, torch.randn(*shape, 3, 1, generator=generator, dtype=torch.float64)], -1)


def test_pose_encoding_has_the_reference_numbers():
    extrinsics = torch.cat([rotation("y", 30) @ rotation("x", 10), torch.tensor([[0.1], [-0.2], [0.3]])], -1)
    intrinsics = torch.tensor([500.0, 480.0, 296.0, 168.0], dtype=torch.float64)
    expected = [0.1, -0.2, 0.3, 0.08418598, 0.25783417, -0.02255757, 0.96225017, 0.67334962, 1.06903279]
    pose = encode_pose(extrinsics, intrinsics, HEIGHT, WIDTH)
    torch.testing.assert_close(pose, torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=0)


def test_decoding_gives_the_camera_back_with_a_centred_principal_point():
    extrinsics = random_cameras(0, 200).float()
    intrinsics = torch.tensor([500.0, 480.0, 296.0, 168.0]).expand(200, 4)
    decoded, inner = decode_pose(encode_pose(extrinsics, intrinsics, HEIGHT, WIDTH), HEIGHT, WIDTH)
    torch.testing.assert_close(decoded, extrinsics, atol=1e-6, rtol=0)
    torch.testing.assert_close(inner, intrinsics, atol=1e-3, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_quaternions_survive_every_rotation_even_half_turns(values):
    quaternion = torch.tensor(values, dtype=torch.float64)
    if quaternion.norm() < 1e-3:
        quaternion = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    turn = rotation_from_quaternion(quaternion)
    found = quaternion_from_rotation(turn)
    assert found[3] >= 0
    torch.testing.assert_close(rotation_from_quaternion(found), turn, atol=1e-7, rtol=0)


def test_canonical_cameras_start_at_the_identity_and_keep_relative_poses():
    cameras = random_cameras(1, 2, 5)
    relative = canonicalise(cameras)
    torch.testing.assert_close(relative[:, 0], torch.eye(3, 4, dtype=torch.float64).expand(2, 3, 4))
    square = torch.cat([cameras, torch.tensor([0.0, 0, 0, 1]).expand(2, 5, 1, 4)], -2)
    expected = square[:, 3] @ square[:, 0].inverse()
    torch.testing.assert_close(relative[:, 3], expected[:, :3])


def test_unprojected_points_project_back_to_their_pixels():
    cameras = random_cameras(2, 3)
    intrinsics = torch.tensor([[9.0, 8.0, 4.2, 2.9]], dtype=torch.float64).expand(3, 4)
    depth = torch.rand(3, 6, 8, dtype=torch.float64) + 0.5
    pixels, z = project(unproject(depth, intrinsics, cameras).flatten(1, 2), intrinsics, cameras)
    torch.testing.assert_close(z, depth.flatten(1))
    v, u = torch.meshgrid(torch.arange(6) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    torch.testing.assert_close(pixels, torch.stack([u, v], -1).double().flatten(0, 1).expand(3, -1, 2))


def test_rays_have_the_reference_spread():
    rays = pixel_rays(torch.tensor([500.0, 480.0, 296.0, 168.0], dtype=torch.float64), HEIGHT, WIDTH)
    unit = rays / rays.norm(dim=-1, keepdim=True)
    spread = [float(unit[..., k].max() - unit[..., k].min()) for k in range(3)]
    assert spread == pytest.approx([1.0176, 0.6589, 0.1755], abs=1e-4)
