"""Plücker coordinates: reference numbers, and the averages that tokens get."""

import torch

from stagecoach.models.fantasy_world.camera import PoseEncoder, average_groups, plucker, token_plucker


def cameras(frames, seed=0):
    g = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(1, frames, 3, 3, generator=g))[0]
    rotation = rotation * torch.linalg.det(rotation).sign()[..., None, None]
    rotation[:, 0] = torch.eye(3)
    translation = torch.randn(1, frames, 3, 1, generator=g)
    translation[:, 0] = 0
    return torch.cat([rotation, translation], -1), torch.tensor([60.0, 50.0, 25.0, 15.0]).expand(1, frames, 4)


def test_directions_span_the_view_of_the_lens():
    extrinsics = torch.eye(3, 4).expand(1, 1, 3, 4)
    rays = plucker(extrinsics, torch.tensor([500.0, 480.0, 296.0, 168.0]).expand(1, 1, 4), 336, 592)
    directions = rays[0, 0, ..., 3:].flatten(0, 1)
    spread = directions.amax(0) - directions.amin(0)
    torch.testing.assert_close(spread, torch.tensor([1.0176, 0.6589, 0.1755]), atol=1e-4, rtol=0)


def test_directions_are_unit_and_moments_are_square_to_them():
    rays = plucker(*cameras(5), 32, 48)
    torch.testing.assert_close(rays[..., 3:].norm(dim=-1), torch.ones(1, 5, 32, 48))
    torch.testing.assert_close((rays[..., :3] * rays[..., 3:]).sum(-1), torch.zeros(1, 5, 32, 48), atol=1e-5, rtol=0)


def test_a_ray_runs_through_the_points_it_sees():
    extrinsics, intrinsics = cameras(3)
    rays = plucker(extrinsics, intrinsics, 32, 48)
    point = torch.tensor([0.3, -0.2, 4.0])
    for frame in range(3):
        rotation, translation = extrinsics[0, frame, :, :3], extrinsics[0, frame, :, 3]
        seen = torch.tensor([(10.5 - 25) / 60, (20.5 - 15) / 50, 1.0]) * point[2]  # pixel row 20, column 10
        world = rotation.T @ (seen - translation)
        moment, direction = rays[0, frame, 20, 10].split(3)
        torch.testing.assert_close(torch.linalg.cross(world, direction), moment, atol=1e-5, rtol=1e-4)


def test_tokens_get_the_average_of_their_pixels_and_frames():
    extrinsics, intrinsics = cameras(9)
    full = plucker(extrinsics, intrinsics, 32, 48).unflatten(2, (2, 16)).unflatten(4, (3, 16)).mean((3, 5))
    expected = torch.stack([full[:, 0], full[:, 1:5].mean(1), full[:, 5:9].mean(1)], 1).flatten(1, 3)
    torch.testing.assert_close(token_plucker(extrinsics, intrinsics, (3, 2, 3), 32, 48), expected, atol=1e-5, rtol=1e-4)


def test_frames_are_grouped_as_the_vae_groups_them():
    groups = average_groups(torch.arange(81.0)[None, :, None])[0, :, 0]
    assert groups.tolist() == [0.0] + [4 * k - 1.5 for k in range(1, 21)]


def test_a_withheld_camera_says_nothing():
    encoder = PoseEncoder(8, 4)
    out = encoder(torch.randn(2, 5, 6), torch.tensor([True, False]))
    assert out[0].abs().min() > 0
    assert torch.equal(out[1], torch.zeros(5, 4))
